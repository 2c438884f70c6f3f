//! Calls whose future is dropped.

use std::fs;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use bentocache_driver::L2Driver;
use bytes::Bytes;

use crate::common::{assert_whole, files, marked, place, temporary, until};

/// Polls once, which starts the work, then drops.
async fn begin_and_drop(call: impl Future) {
    let mut call = pin!(call);
    poll_fn(|cx| {
        let _ = call.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn an_abandoned_write_is_whole_or_absent() {
    let (_directory, file) = temporary();
    for n in 0..100 {
        let key = (n % 7).to_string();
        begin_and_drop(file.set(&key, marked(n), None)).await;
        begin_and_drop(file.update(&key, &marked(n), marked(n + 1), None)).await;
        begin_and_drop(file.delete(&[&(n % 5).to_string()])).await;
        begin_and_drop(file.clear("6")).await;
        file.get(&key).await.unwrap().iter().for_each(|value| assert_whole(value));
    }
    file.set("0", marked(1), None).await.unwrap();
}

#[tokio::test]
async fn what_waits_for_the_lock_does_nothing_after_its_caller_has_left() {
    let (directory, file) = temporary();
    let [old, new, newer] = [b"old", b"new", b"nwr"].map(|value| Bytes::from_static(value));
    file.set("key", old.clone(), None).await.unwrap();
    let place = place(directory.path(), "key");
    let lock = fs::File::open(place.with_file_name(".bento-lock")).unwrap();

    lock.lock().unwrap();
    let mut set = Box::pin(file.set("key", new, None));
    let begun = poll_fn(|cx| Poll::Ready(set.as_mut().poll(cx))).await;
    assert!(begun.is_pending());
    // The temporary file is there: the write has begun, and can get no further.
    until(|| files(directory.path()).len() == 2).await;
    drop(set);
    lock.unlock().unwrap();
    // Else the late set would come before or after this, and either would show.
    assert!(file.update("key", &old, newer.clone(), None).await.unwrap());
    until(|| files(directory.path()) == [&*place]).await;
    assert_eq!(file.get("key").await.unwrap(), Some(newer.clone()));

    lock.lock().unwrap();
    begin_and_drop(file.pull("key")).await;
    lock.unlock().unwrap();
    assert_eq!(file.pull("key").await.unwrap(), Some(newer));
}
