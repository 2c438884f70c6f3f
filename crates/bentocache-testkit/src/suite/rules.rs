//! The rule of each case, and what to change in a driver that breaks it. A failing case ends with
//! both.

/// A case, its rule, and what to change.
type Rule = (&'static str, &'static str, &'static str);

/// The rule of the case and what to change.
///
/// # Panics
/// If the case is not in the list of its suite.
pub(super) fn of(suite: &str, case: &str) -> (&'static str, &'static str) {
    let list: &[Rule] = match suite {
        "l2" => L2,
        "bus" => BUS,
        "l1" => L1,
        _ => LOCK,
    };
    let found = list.iter().chain(ALL).find(|(name, ..)| *name == case);
    let (_, rule, change) = found.unwrap_or_else(|| panic!("no rule for {suite}::{case}"));
    (rule, change)
}

const ALL: &[Rule] = &[
    (
        "declares_what_it_lacks",
        "`without` lists exactly what the driver cannot do",
        "the list in the macro call, or what the driver returns from `capabilities`",
    ),
    (
        "outlives_its_runtime",
        "a driver works on another Tokio runtime after the first one has ended, and without a runtime \
         its calls are `ErrorKind::Closed`",
        "run each call in `on_runtime` of `bentocache-driver` (feature `runtime`), and open the \
         connections again if their runtime has ended; or declare `without = [runtimes]`",
    ),
    (
        "a_server_that_is_gone_is_a_transient_failure",
        "while the server is gone, each call fails within 30 seconds with `ErrorKind::Unavailable` or \
         `Timeout`, and works again once the server is back",
        "map errors of the connection to `Unavailable`, limit each attempt in time, and connect again \
         after a failure, also after a failed `connect`",
    ),
    (
        "calls_after_disconnect",
        "after `disconnect` every call returns, and other drivers on the same store go on",
        "let `disconnect` end only what this driver owns, and let later calls fail at once",
    ),
    (
        "errors_after_disconnect_are_closed",
        "an error after `disconnect` is `ErrorKind::Closed`, because any other kind may be retried",
        "note that the driver is closed, and return `DriverError::new(ErrorKind::Closed, …)` first of \
         all in each call",
    ),
    (
        "abandoned_calls",
        "the future of a call may be dropped at any `await`",
        "write a value in one step (one statement, one request, a temporary file and a rename), and \
         return a connection to its pool only when its answer was read",
    ),
];

const L2: &[Rule] = &[
    (
        "round_trip",
        "a value is any bytes, and comes back unchanged",
        "store bytes, not text: a binary column, no conversion, no trimming",
    ),
    (
        "missing_key",
        "a key without a value is `Ok(None)`",
        "map the answer \"not found\" of your client to `None`, not to an error",
    ),
    (
        "overwriting",
        "`set` replaces the whole value",
        "use an upsert or put, and truncate what was longer",
    ),
    (
        "empty_value",
        "an empty value is a value",
        "distinguish a missing row from an empty one; do not treat an empty answer as a miss",
    ),
    (
        "empty_key",
        "the empty key works like any other, or is `ErrorKind::Refused` or `TooLarge` in every call",
        "check it first in each call if your store cannot have it",
    ),
    (
        "hostile_keys",
        "keys are exact: case, spaces, quotes, wildcards and path parts count",
        "pass keys as parameters, never as a part of a statement, pattern or path; compare them byte by \
         byte (a binary collation); encode them if your store allows fewer characters",
    ),
    (
        "nul_in_keys",
        "a key with a NUL works, or is refused; it never meets the key before the NUL",
        "check for NUL in each call if your client hands keys to C code",
    ),
    (
        "keys_never_meet",
        "two keys are the same only if all their bytes are",
        "a binary collation, no Unicode normalization, no mapping of `:` to `/`, no hash without the key",
    ),
    (
        "key_of_10_kb",
        "keys of 10 kB work to their last byte",
        "a longer column, or the hash of the key with the key beside it; or declare the limit: \
         `with_max_key` in `capabilities` and `without = [long_keys]`",
    ),
    (
        "limits_are_named",
        "above a declared limit, a call fails with `ErrorKind::TooLarge` and names the limit in bytes; \
         at the limit it works",
        "compare the length in bytes before you call the store, and put the limit into the message",
    ),
    (
        "too_long_keys_are_refused_for_good",
        "a key above the limit is refused for good by writes; reads, deletions and comparisons refuse it \
         too or answer that it is missing",
        "check the key first in each method: `TooLarge` from `set` and `insert`; from `get`, `get_many`, \
         `delete`, `pull`, `update` and `delete_if` the same or that nothing is there. Never \
         `Unavailable`, which is repeated",
    ),
    (
        "value_of_1_mib",
        "a value of 1 MiB comes back complete, unless a lower limit is declared",
        "a larger column or request limit, or `with_max_value` in `capabilities`",
    ),
    (
        "value_of_64_mib",
        "a value of 64 MiB comes back complete",
        "a larger limit, or `with_max_value` in `capabilities` and `without = [large_values]`",
    ),
    (
        "expiry",
        "a value can be read for its ttl, and not longer than the declared precision after it",
        "filter expired rows in each read (do not rely on a job that removes them), by one clock for \
         writes and reads; declare a coarser `with_ttl_precision` if your store rounds",
    ),
    (
        "expiry_to_the_millisecond",
        "a ttl is exact to the declared precision",
        "store milliseconds, or declare `with_ttl_precision` and `without = [fine_ttl]`",
    ),
    (
        "no_ttl",
        "`None` as ttl means no expiry",
        "write no end at all; do not use a default ttl of the store",
    ),
    (
        "huge_ttl",
        "any ttl is accepted, `Duration::MAX` included",
        "`checked_add` or `saturating_add`, and no expiry if the end cannot be represented",
    ),
    (
        "tiny_ttl",
        "a ttl below the precision ends soon, and does not become \"no expiry\"",
        "round up to the smallest ttl that the store can have, never down to 0",
    ),
    (
        "zero_ttl",
        "a ttl of zero leaves nothing under the key",
        "delete the key; many stores read 0 as \"no expiry\"",
    ),
    (
        "overwriting_replaces_the_expiry",
        "`set` replaces the expiry too, also by none",
        "write the end in each upsert, null included",
    ),
    (
        "expired_values_are_nowhere",
        "no method finds an expired value",
        "add the condition \"not expired\" to every statement: `get_many`, `pull`, `update`, `delete_if`, \
         `insert`, `keys`, and the count of `delete`",
    ),
    (
        "delete_counts",
        "`delete` returns how many keys existed",
        "return the number of rows that were there and had not expired, not the number of keys asked",
    ),
    (
        "delete_of_nothing",
        "`delete(&[])` does nothing",
        "return `Ok(0)` before you build a statement",
    ),
    (
        "delete_of_duplicates",
        "a key that is given twice counts once",
        "remove duplicates before you add up several answers",
    ),
    (
        "get_many_keeps_order",
        "`get_many` answers each key at its place, also missing and repeated ones",
        "put the rows into a map by key, and look each key up",
    ),
    (
        "get_many_of_nothing",
        "`get_many(&[])` is an empty list",
        "return before you build a statement",
    ),
    (
        "set_many_with_mixed_ttls",
        "each write of `set_many` has its own ttl",
        "pass the end of each row, not one for the batch",
    ),
    ("set_many_of_nothing", "`set_many(&[])` does nothing", "return before you build a statement"),
    (
        "set_many_of_duplicates",
        "the last of several writes to one key wins",
        "keep only the last one for each key before you build a batch",
    ),
    (
        "a_thousand_keys",
        "calls for 1,000 keys work",
        "split batches at the limits of parameters, items and bytes of your store",
    ),
    (
        "clear_takes_the_prefix_literally",
        "`clear` deletes the keys that start with these bytes, and no others",
        "compare with a range of bytes or `starts_with`; escape the prefix where it is a pattern \
         (`LIKE`, `SCAN MATCH`, a glob)",
    ),
    (
        "clear_of_many_keys",
        "`clear` deletes all of them, however many pages that takes",
        "repeat until nothing is left; do not stop after one page of a listing",
    ),
    (
        "clear_of_everything",
        "`clear(\"\")` deletes what belongs to this store, or is `ErrorKind::Refused` and deletes nothing",
        "refuse, and say which prefix or table to configure, if foreign data may be there",
    ),
    ("pull_takes", "`pull` returns the value and removes it", "delete the key that was read"),
    (
        "pull_of_nothing",
        "`pull` of a missing key is `None`",
        "map \"not found\" to `None`, and write nothing",
    ),
    (
        "concurrent_pulls",
        "of concurrent pulls one gets the value",
        "one atomic step (`GETDEL`, `delete … returning`), or no `with_atomic_pull` and `without = \
         [atomic_pull]`",
    ),
    (
        "update_replaces",
        "`update` replaces the value if it is the expected one",
        "compare all bytes of the value, and return whether a row changed",
    ),
    (
        "update_keeps_the_expiry",
        "`update` keeps the end of the value",
        "do not write the end; where the store cannot keep it, use `remaining`",
    ),
    (
        "update_compares",
        "`update` changes nothing if the value differs",
        "a condition on the value in the same statement",
    ),
    ("update_creates_nothing", "`update` creates no key", "an update, not an upsert"),
    (
        "concurrent_updates",
        "of concurrent updates of the same bytes one succeeds",
        "one atomic step, or no `with_atomic_compare` and `without = [atomic_compare]`",
    ),
    (
        "update_against_set",
        "`update` never overwrites a value that was set meanwhile",
        "compare and replace in one atomic step, or declare `without = [atomic_compare]`",
    ),
    (
        "touch_extends",
        "`touch` gives a stored key this ttl, from now, and returns true",
        "set the expiry of the row or key to now plus the ttl, and return whether there was one",
    ),
    (
        "touch_shortens",
        "the new ttl may be shorter than what was left, also where there was no end",
        "set the expiry whatever it was; use no condition such as Redis' `GT`",
    ),
    (
        "touch_without_an_end",
        "`touch` with `None` removes the expiry, and returns true for a key that has none",
        "`PERSIST`, or an expiry of null; ask whether the key exists if the store does not tell",
    ),
    (
        "touch_keeps_the_value",
        "`touch` changes no byte of the value, and no other key",
        "write the expiry alone; do not read the value and write it again",
    ),
    (
        "touch_of_nothing",
        "`touch` of a key without a value returns false and creates nothing",
        "an update, not an upsert",
    ),
    (
        "touch_of_the_expired",
        "`touch` of an expired value returns false, whether it was removed already or not",
        "add the condition that the old expiry is in the future",
    ),
    (
        "touch_of_tiny_and_huge_ttls",
        "`touch` accepts every ttl that `set` accepts",
        "round up to the store's precision, and limit the ttl to what the store can hold, as in `set`",
    ),
    (
        "touch_against_delete",
        "a key that is deleted while it is touched stays deleted",
        "change the expiry in one step; the default body is not atomic",
    ),
    (
        "touch_against_set",
        "a value that is set while its key is touched stays",
        "change the expiry in one step; the default body is not atomic",
    ),
    (
        "insert_spares_what_is_there",
        "`insert` stores the value if nothing is there, and tells whether it did",
        "`insert … on conflict do nothing`, `SET NX`, a conditional put; return whether a row was written",
    ),
    (
        "insert_keeps_its_ttl",
        "an inserted value ends after its ttl",
        "write the end in `insert` too",
    ),
    (
        "insert_replaces_what_has_expired",
        "an expired value does not block `insert`",
        "let the statement replace a row that has expired",
    ),
    (
        "concurrent_inserts",
        "of concurrent inserts one succeeds",
        "one atomic step, or no `with_atomic_compare` and `without = [atomic_compare]`",
    ),
    (
        "delete_if_compares",
        "`delete_if` deletes exactly these bytes",
        "a condition on the whole value in the same statement",
    ),
    (
        "concurrent_delete_ifs",
        "of concurrent `delete_if` one succeeds",
        "one atomic step, or no `with_atomic_compare` and `without = [atomic_compare]`",
    ),
    (
        "delete_if_against_set",
        "`delete_if` never deletes a value that was set meanwhile",
        "compare and delete in one atomic step, or declare `without = [atomic_compare]`",
    ),
    (
        "keys_are_exact",
        "`keys` lists each key with the prefix once, complete, and no other",
        "take the prefix literally, page by the last key (`key_pages` of `bentocache-driver`), leave out \
         expired rows and duplicates; or `without = [keys]`",
    ),
    (
        "prune_removes_the_dead",
        "`prune` removes expired values and counts them",
        "delete all expired rows and return their number; if the store does so by itself, declare \
         `with_native_expiry`; if nothing does, `without = [prune]`",
    ),
    (
        "concurrent_writers",
        "a reader sees one whole value, while many write",
        "write a value in one step, never delete it before; a file by rename",
    ),
    (
        "concurrent_readers",
        "each of many concurrent readers gets the value of its own key",
        "keep answers and questions together where calls share a connection or a batch",
    ),
    (
        "two_instances",
        "a change by one driver is visible at once to another on the same store",
        "no cache in the driver, no read from a replica that lags; and `open` of the suite must open \
         drivers on the same data",
    ),
];

const BUS: &[Rule] = &[
    (
        "reaches_every_subscriber",
        "a message reaches every subscriber of its channel, those of the publisher included",
        "fan out: a queue for each subscriber, no shared consumer group",
    ),
    (
        "channels_are_separate",
        "a message stays in its channel",
        "subscribe to the exact name, without wildcards, and filter if your system prefixes names",
    ),
    (
        "hostile_channels",
        "any text is the name of a channel, and different texts are different channels",
        "encode the characters that your system treats specially",
    ),
    (
        "keeps_order",
        "messages of one publisher arrive in order",
        "one connection for all publishes; or `without = [order]`",
    ),
    ("any_bytes", "a message is any bytes", "no text encoding; base64 where only text is possible"),
    ("empty_message", "a message of no bytes arrives", "do not skip empty payloads"),
    (
        "message_of_512_kib",
        "a message of 512 KiB arrives complete",
        "raise the limit of the server, or split and join the parts in the driver",
    ),
    (
        "burst",
        "10,000 messages in a row arrive, or the loss is reported as `Lost` and `Restored`",
        "use `BusFeed`, which bounds the queue and reports what it drops",
    ),
    (
        "slow_subscriber",
        "a subscriber that does not read neither blocks the publisher nor loses messages in silence",
        "use `BusFeed` between the task that reads the connection and the stream",
    ),
    (
        "concurrent_publishers",
        "all messages of concurrent publishers arrive",
        "guard the connection of publishes, and await the answer of each",
    ),
    (
        "subscription_is_live",
        "what is published after `subscribe` has returned arrives",
        "return from `subscribe` when the server has confirmed the subscription",
    ),
    (
        "no_subscriber",
        "publishing without subscribers is no error, and later subscribers get nothing old",
        "no retained or durable messages",
    ),
    (
        "dropped_subscriber",
        "a dropped stream harms nobody else",
        "unsubscribe when the stream is dropped, and ignore a closed receiver",
    ),
    (
        "disconnect_ends_streams",
        "after `disconnect` open streams end",
        "drop the senders of the feeds in `disconnect`",
    ),
    (
        "a_lost_link_is_reported",
        "a lost connection is reported as `Lost` within 20 seconds, a silent one too",
        "ping the server in intervals, and send `Lost` when it does not answer",
    ),
    (
        "nothing_is_published_over_a_lost_link",
        "while the link is lost, `publish` is an error",
        "await the server's confirmation of each message, or check the link first",
    ),
    (
        "a_link_that_is_back_is_reported",
        "after the link is back, `Restored` comes once messages arrive again",
        "send `Restored` when the new subscription is confirmed, not when the connection is open",
    ),
    (
        "a_link_that_is_back_works",
        "after the link is back, messages pass both ways and new subscriptions succeed",
        "subscribe all channels again on the new connection",
    ),
];

const L1: &[Rule] = &[
    ("insert_and_get", "`get` returns the entry that was inserted", "store the `Arc` that you got"),
    ("missing_key", "a key without an entry is `None`", "compare whole keys, not only hashes"),
    (
        "read_shows_what_get_returns",
        "`read` calls its closure once with the entry of `get`, and never without one",
        "keep the default body, or look the entry up in the same way",
    ),
    (
        "insert_returns_the_old",
        "`insert` returns the entry that it replaced",
        "fill `Inserted::replaced`",
    ),
    ("remove_returns_the_entry", "`remove` returns the entry", "return what the map returns"),
    (
        "stale_entries_are_returned",
        "an expired entry that is not dead is returned: the engine judges it",
        "look at no time in `get`; only `prune` looks at `dead_at`",
    ),
    ("hostile_keys", "keys are exact", "compare keys byte by byte"),
    ("long_keys", "keys of 10 kB work to their last byte", "no limit and no cut of keys"),
    (
        "clear_takes_the_prefix_literally",
        "`clear` removes the keys that start with the prefix, and no others",
        "`starts_with`, no pattern",
    ),
    (
        "clear_of_everything",
        "`clear(\"\")` empties the tier, which can be used again",
        "reset the sizes too",
    ),
    (
        "prune_removes_the_dead_only",
        "`prune(now)` removes the entries whose `dead_at` is not after `now`, and counts them",
        "compare `dead_at() <= now`, by the argument and not by a clock of your own",
    ),
    ("len_counts", "`len` counts each entry once, dead ones included", "count after each change"),
    ("for_each_shows_all", "`for_each` shows each entry once", "copy the entries, then visit them"),
    (
        "for_each_may_call_back",
        "the visitor may use the tier",
        "copy the entries under the lock, and call `visit` after it is free",
    ),
    (
        "every_entry_is_accounted_for",
        "an inserted entry is in the tier, or was returned as evicted or refused",
        "fill `Inserted::evicted` with what made room, and set `refused` for what is not kept",
    ),
    (
        "nothing_leaks",
        "entries that left the tier are dropped",
        "keep no `Arc` in a list, ghost queue or statistic",
    ),
    (
        "values_are_dropped_outside_of_locks",
        "no value is dropped while the tier holds a lock, because a drop runs code of its owner",
        "move removed entries out, release the lock, and drop or return them then",
    ),
    (
        "many_threads",
        "many threads may use the tier at the same time",
        "take one lock at a time, and compare the key after the hash was found",
    ),
    (
        "extreme_weights",
        "weights of 0 and of `u64::MAX` are weights",
        "`saturating_add`, and no division by a weight",
    ),
    (
        "a_refused_entry_removes_the_old",
        "an entry that is refused still removes the one that it would have replaced",
        "remove the key before you return `refused`",
    ),
];

const LOCK: &[Rule] = &[
    (
        "exclusive",
        "a lease has one owner at a time",
        "acquire by one atomic step (`SET NX PX`, an insert that fails on conflict)",
    ),
    (
        "release_frees",
        "after a release the next owner gets the lease",
        "delete the lease in `release`",
    ),
    (
        "release_checks_the_token",
        "only the owner's token releases",
        "compare the token and delete in one atomic step",
    ),
    (
        "renew_checks_the_token",
        "only the owner's token renews, and only a lease that exists",
        "compare the token and set the end in one atomic step",
    ),
    (
        "lease_expires",
        "a lease ends by itself after its time",
        "an expiry of the server, to the millisecond",
    ),
    (
        "expired_owner_is_powerless",
        "an owner that lost the lease changes nothing for the next one",
        "compare the token, and treat an expired lease as none",
    ),
    (
        "renew_prolongs",
        "a renewal begins the lease again from now",
        "set the end, do not add to it",
    ),
    (
        "keys_are_independent",
        "leases of different keys are independent",
        "use the whole key, and no lock for the whole table",
    ),
    ("one_of_fifty", "of concurrent calls one gets the lease", "one atomic step to acquire"),
    (
        "huge_lease",
        "any time is accepted",
        "`saturating_add`, and the largest end that the store can have",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_case_is_there_once() {
        for (suite, list) in [("l2", L2), ("bus", BUS), ("l1", L1), ("lock", LOCK)] {
            let mut seen = HashSet::new();
            for (case, rule, change) in list.iter().chain(ALL) {
                assert!(seen.insert(case), "{suite}::{case}");
                assert!(!rule.is_empty() && !change.is_empty());
            }
        }
    }
}
