//! The cases for a lock, [`LockDriver`]. Run them all with [`lock_suite!`](crate::lock_suite).
//!
//! `without` has no names here. Each case takes the closure that opens drivers, and panics if the
//! driver violates the rule.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bentocache_driver::LockDriver;

use super::{HOSTILE, compare_declared};
use crate::unique;

/// Runs the suite for a lock; see [`suite`](crate::suite) for how to call it.
#[macro_export]
macro_rules! lock_suite {
    ($($input:tt)*) => {
        $crate::__suite! {
            lock
            [
                exclusive,
                release_frees,
                release_checks_the_token,
                renew_checks_the_token,
                lease_expires,
                expired_owner_is_powerless,
                renew_prolongs,
                keys_are_independent,
                one_of_fifty,
                huge_lease,
                calls_after_disconnect,
            ]
            []
            $($input)*
        }
    };
}

const LONG: Duration = Duration::from_secs(60);
/// How long after its end a lease may still be visible: a service may count whole seconds.
const LATE: Duration = Duration::from_millis(1_500);
const EARLY: Duration = Duration::from_millis(5);

fn key() -> String {
    unique("kit:lock:")
}

async fn acquire<D: LockDriver>(lock: &D, key: &str, token: &str, lease: Duration) -> bool {
    lock.acquire(key, token, lease).await.expect("acquire")
}

async fn renew<D: LockDriver>(lock: &D, key: &str, token: &str, lease: Duration) -> bool {
    lock.renew(key, token, lease).await.expect("renew")
}

async fn release<D: LockDriver>(lock: &D, key: &str, token: &str) -> bool {
    lock.release(key, token).await.expect("release")
}

/// A lock has no optional abilities.
pub async fn declares_what_it_lacks<D: LockDriver>(open: impl AsyncFn() -> D, declared: &[&str]) {
    let lock = open().await;
    assert!(!lock.name().is_empty(), "a driver has a name");
    compare_declared(lock.name(), declared, &[]);
}

/// While one owner has the lease, no other gets it on any instance, nor does the same owner again.
pub async fn exclusive<D: LockDriver>(open: impl AsyncFn() -> D) {
    let [one, two] = [open().await, open().await];
    let key = key();
    assert!(acquire(&one, &key, "a", LONG).await);
    assert!(!acquire(&one, &key, "b", LONG).await);
    assert!(!acquire(&two, &key, "b", LONG).await, "another instance takes a lease that is held");
    assert!(!acquire(&two, &key, "a", LONG).await, "a lease that is held is acquired again");
    assert!(release(&two, &key, "a").await, "the token counts, not the instance");
}

/// After a release, the next owner gets the lease.
pub async fn release_frees<D: LockDriver>(open: impl AsyncFn() -> D) {
    let [one, two] = [open().await, open().await];
    let key = key();
    assert!(!release(&one, &key, "a").await, "release of a lease that nobody has");
    for token in ["a", "b", "a"] {
        assert!(acquire(&one, &key, token, LONG).await);
        assert!(release(&one, &key, token).await);
        assert!(!release(&one, &key, token).await, "a second release");
    }
    assert!(acquire(&two, &key, "c", LONG).await);
    release(&two, &key, "c").await;
}

/// Only the owner's token releases.
pub async fn release_checks_the_token<D: LockDriver>(open: impl AsyncFn() -> D) {
    let lock = open().await;
    let key = key();
    assert!(acquire(&lock, &key, "token", LONG).await);
    for token in ["other", "", "TOKEN", "toke", "token ", "*"] {
        assert!(!release(&lock, &key, token).await, "released by {token:?}");
        assert!(!acquire(&lock, &key, "b", LONG).await, "freed by {token:?}");
    }
    assert!(release(&lock, &key, "token").await);
}

/// Only the owner's token renews, and only a lease that it has.
pub async fn renew_checks_the_token<D: LockDriver>(open: impl AsyncFn() -> D) {
    let lock = open().await;
    let key = key();
    assert!(!renew(&lock, &key, "token", LONG).await, "renewed what nobody has");
    assert!(acquire(&lock, &key, "token", LONG).await, "a failed renewal took the lease");
    for token in ["other", "", "TOKEN", "toke"] {
        assert!(!renew(&lock, &key, token, LONG).await, "renewed by {token:?}");
    }
    assert!(renew(&lock, &key, "token", LONG).await);
    assert!(release(&lock, &key, "token").await);
    assert!(!renew(&lock, &key, "token", LONG).await, "renewed what was released");
    assert!(acquire(&lock, &key, "b", LONG).await, "a failed renewal took the lease");
    release(&lock, &key, "b").await;
}

/// A lease ends by itself, neither early nor much later.
pub async fn lease_expires<D: LockDriver>(open: impl AsyncFn() -> D) {
    let [one, two] = [open().await, open().await];
    let key = key();
    let lease = Duration::from_millis(400);
    let start = Instant::now();
    assert!(acquire(&one, &key, "a", lease).await);
    ends(&two, &key, start, lease).await;
}

/// Waits until `b` gets the lease, and releases it.
async fn ends<D: LockDriver>(lock: &D, key: &str, start: Instant, lease: Duration) {
    let taken = Instant::now();
    loop {
        let asked = taken.elapsed();
        if acquire(lock, key, "b", LONG).await {
            let lasted = start.elapsed();
            assert!(lasted + EARLY >= lease, "a lease of {lease:?} ended after {lasted:?}");
            break;
        }
        assert!(asked <= lease + LATE, "a lease of {lease:?} lasts after {asked:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(release(lock, key, "b").await);
}

/// An owner that lost the lease can neither renew nor release the next owner's lease.
pub async fn expired_owner_is_powerless<D: LockDriver>(open: impl AsyncFn() -> D) {
    let lock = open().await;
    let key = key();
    let lease = Duration::from_millis(200);
    assert!(acquire(&lock, &key, "a", lease).await);
    tokio::time::sleep(lease + LATE).await;
    assert!(!renew(&lock, &key, "a", LONG).await, "renewed a lease that had ended");
    assert!(acquire(&lock, &key, "b", LONG).await);
    assert!(!renew(&lock, &key, "a", LONG).await, "renewed another's lease");
    assert!(!release(&lock, &key, "a").await, "released another's lease");
    assert!(!acquire(&lock, &key, "c", LONG).await, "ended another's lease");
    assert!(release(&lock, &key, "b").await);
}

/// A renewal starts the lease again from now.
pub async fn renew_prolongs<D: LockDriver>(open: impl AsyncFn() -> D) {
    let lock = open().await;
    let key = key();
    assert!(acquire(&lock, &key, "a", Duration::from_millis(1_000)).await);
    let lease = Duration::from_millis(2_500);
    let start = Instant::now();
    assert!(renew(&lock, &key, "a", lease).await);
    ends(&lock, &key, start, lease).await;
}

/// Leases of different keys are independent.
pub async fn keys_are_independent<D: LockDriver>(open: impl AsyncFn() -> D) {
    let lock = open().await;
    let key = key();
    for end in HOSTILE {
        assert!(acquire(&lock, &format!("{key}{end}"), "a", LONG).await, "acquire of {end:?}");
    }
    let [first, others @ ..] = HOSTILE else { return };
    assert!(release(&lock, &format!("{key}{first}"), "a").await);
    for end in others {
        let key = format!("{key}{end}");
        assert!(!acquire(&lock, &key, "b", LONG).await, "{end:?} was released by another key");
        assert!(release(&lock, &key, "a").await, "release of {end:?}");
    }
}

/// Of fifty concurrent calls on two instances, one gets the lease.
pub async fn one_of_fifty<D: LockDriver>(open: impl AsyncFn() -> D) {
    let locks = [Arc::new(open().await), Arc::new(open().await)];
    let key = key();
    for round in 0..10 {
        let start = Arc::new(tokio::sync::Barrier::new(50));
        let contenders: Vec<_> = (0..50)
            .map(|at| {
                let (lock, start) = (locks[at % 2].clone(), start.clone());
                let (key, token) = (key.clone(), format!("token {at}"));
                tokio::spawn(async move {
                    start.wait().await;
                    acquire(&*lock, &key, &token, LONG).await.then_some(token)
                })
            })
            .collect();
        let mut winners = Vec::new();
        for contender in contenders {
            winners.extend(contender.await.expect("no panic"));
        }
        assert_eq!(winners.len(), 1, "in round {round}, of 50 contenders");
        assert!(release(&*locks[0], &key, &winners[0]).await, "the winner has the lease");
    }
}

/// A lease beyond every clock neither panics nor wraps around.
pub async fn huge_lease<D: LockDriver>(open: impl AsyncFn() -> D) {
    let lock = open().await;
    let key = key();
    for lease in [Duration::MAX, Duration::from_millis(u64::MAX), Duration::from_secs(1 << 33)] {
        assert!(acquire(&lock, &key, "a", lease).await, "a lease of {lease:?}");
        assert!(!acquire(&lock, &key, "b", LONG).await, "a lease of {lease:?} is over");
        assert!(renew(&lock, &key, "a", lease).await, "a renewal of {lease:?}");
        assert!(release(&lock, &key, "a").await);
    }
}

/// After `disconnect`, every call returns an answer or an error, and other instances still work.
pub async fn calls_after_disconnect<D: LockDriver>(open: impl AsyncFn() -> D) {
    let [one, two] = [open().await, open().await];
    let [key, other] = [key(), key()];
    assert!(acquire(&two, &key, "a", LONG).await);
    one.disconnect().await.expect("disconnect");
    let calls = async {
        let _ = one.acquire(&other, "b", LONG).await;
        let _ = one.renew(&other, "b", LONG).await;
        let _ = one.release(&other, "b").await;
        let _ = one.disconnect().await;
    };
    let answered = tokio::time::timeout(Duration::from_secs(20), calls).await;
    assert!(answered.is_ok(), "a call after disconnect hangs");
    assert!(!acquire(&two, &key, "b", LONG).await, "disconnect ended another's lease");
    assert!(release(&two, &key, "a").await);
}
