//! The findings about a store's configuration.

use bentocache_driver::{Finding, NEVER};

use crate::options::{Hooks, Policy};

/// What the advisor looks at when a store is built.
pub(crate) struct Setup<'a> {
    pub(crate) has_l1: bool,
    pub(crate) has_bus: bool,
    /// The name of an L2 that is a server.
    pub(crate) server: Option<&'static str>,
    pub(crate) has_prefix: bool,
    pub(crate) policy: &'a Policy,
    pub(crate) hooks: &'a Hooks,
}

impl Setup<'_> {
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let Setup { has_l1, has_bus, server, policy, .. } = *self;
        let mut findings = Vec::new();
        let mut add = |is_so: bool, finding: fn() -> Finding| {
            if is_so {
                findings.push(finding());
            }
        };
        add(server.is_some() && has_l1 && !has_bus && policy.l1_ttl == NEVER, l2_without_bus);
        add(has_bus && !has_l1, bus_without_l1);
        add(self.may_wait_in_spite_of_grace(), grace_without_timeout);
        add(self.hooks.has_stale_if() && policy.grace == 0, stale_if_without_grace);
        add(policy.ttl != NEVER && policy.ttl > policy.tag_ttl, ttl_above_tag_ttl);
        if let Some(server) = server.filter(|_| !self.has_prefix) {
            findings.push(empty_prefix(server));
        }
        findings
    }

    /// Whether a factory that hangs holds up its callers, although there is a stale value, and calls
    /// none of the hooks that the store has.
    fn may_wait_in_spite_of_grace(&self) -> bool {
        let Policy { grace, timeout, hard_timeout, factory_timeout, lock_timeout, .. } =
            *self.policy;
        let waits = [timeout, hard_timeout, factory_timeout, lock_timeout];
        grace > 0 && waits.iter().all(|limit| *limit == NEVER) && self.hooks.has_failure_hook()
    }
}

fn l2_without_bus() -> Finding {
    Finding::new(
        "l2-without-bus",
        "the store has an L1 and a shared L2, and neither a bus nor an `l1_ttl`, so the L1 of this \
         process serves values for their whole ttl after another process has changed them",
        "add a bus with `.bus(…)`, or let L1 ask L2 again with, for example, `.l1_ttl(\"10s\")`",
    )
}

fn bus_without_l1() -> Finding {
    Finding::new(
        "bus-without-l1",
        "the store has a bus and no L1, which is what a bus keeps up to date",
        "add `.l1(Memory::new())`, or leave the bus out",
    )
}

fn grace_without_timeout() -> Finding {
    Finding::new(
        "grace-without-timeout",
        "a factory that hangs never fails: the hooks `on_factory_error` and `stale_if` are not \
         called, and callers wait although there is a stale value, because `timeout` is \"none\"",
        "set `.timeout(…)`, `.hard_timeout(…)` or `.factory_timeout(…)` too",
    )
}

fn stale_if_without_grace() -> Finding {
    Finding::new(
        "stale-if-without-grace",
        "the store has `stale_if` and no grace, so there is no stale value to decide about",
        "set `.grace(…)` for the store, or `stale_if` on the calls that set a grace",
    )
}

/// Also for a call that sets such a ttl.
pub(crate) fn ttl_above_tag_ttl() -> Finding {
    Finding::new(
        "ttl-above-tag-ttl",
        "the ttl is longer than `tag_ttl`, so a value with tags is gone before its ttl ends",
        "raise `.tag_ttl(…)`, or lower the ttl",
    )
}

fn empty_prefix(server: &str) -> Finding {
    Finding::new(
        "empty-prefix",
        format!(
            "the store has no prefix and its L2 is a server ({server}), so its keys can meet those \
             of other applications, and `clear` may delete these"
        ),
        "set a prefix of its own, such as `.prefix(\"shop\")`",
    )
}

/// Two stores of one cache have the same keys.
pub(crate) fn shared_prefix(other: &str, prefix: &str) -> Finding {
    Finding::new(
        "shared-prefix",
        format!(
            "this store and the store {other:?} have the same L2 and the prefix {prefix:?}, so each \
             reads, replaces and clears the values of the other"
        ),
        "give each store a prefix of its own with `.prefix(…)`",
    )
}
