//! Batches of writes.

use std::collections::BTreeMap;

use bentocache_driver::Write;

use crate::clock::end;
use crate::{Limits, Row};

/// The rows to write: only the last row of each key, in ascending order, so that two concurrent
/// batches lock rows in the same order.
pub(crate) fn rows<'w>(writes: &'w [Write<'w>]) -> Vec<Row<'w>> {
    let last: BTreeMap<&str, &Write<'_>> = writes.iter().map(|write| (write.key, write)).collect();
    let row = |write: &'w Write<'w>| Row {
        key: write.key,
        value: write.value.clone(),
        expires_at: end(write.ttl),
    };
    last.into_values().map(row).collect()
}

/// Chunks within the limits of one call. A row that is too large for a chunk is a chunk of its own.
pub(crate) fn split<'r, 'w>(
    mut rows: &'r [Row<'w>],
    limits: &Limits,
) -> impl Iterator<Item = &'r [Row<'w>]> {
    let (most, most_bytes) = (limits.batch.max(1), limits.batch_bytes);
    std::iter::from_fn(move || {
        let mut bytes = 0_usize;
        let fits = rows.iter().take(most).take_while(|row| {
            bytes = bytes.saturating_add(row.key.len() + row.value.len());
            bytes <= most_bytes
        });
        let count = fits.count().max(1).min(rows.len());
        let (piece, rest) = rows.split_at(count);
        rows = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn write(key: &str, size: usize) -> Write<'_> {
        Write { key, value: Bytes::from(vec![0; size]), ttl: None }
    }

    #[test]
    fn the_last_write_of_a_key_stays_and_keys_ascend() {
        let writes = [write("b", 1), write("a", 2), write("b", 3)];
        let rows = rows(&writes);
        let seen: Vec<_> = rows.iter().map(|row| (row.key, row.value.len())).collect();
        assert_eq!(seen, [("a", 2), ("b", 3)]);
    }

    #[test]
    fn pieces_are_within_the_limits() {
        let writes = [write("a", 4), write("b", 4), write("c", 100), write("d", 4), write("e", 0)];
        let rows = rows(&writes);
        let sizes = |limits| split(&rows, &limits).map(<[_]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(Limits::default()), [5]);
        assert_eq!(sizes(Limits::default().with_batch(2)), [2, 2, 1]);
        assert_eq!(sizes(Limits::default().with_batch_bytes(10)), [2, 1, 2]);
        assert_eq!(sizes(Limits::default().with_batch_bytes(0)), [1; 5]);
        assert_eq!(sizes(Limits::default().with_batch(0)), [1; 5]);
        assert_eq!(split(&[], &Limits::default()).count(), 0);
    }
}
