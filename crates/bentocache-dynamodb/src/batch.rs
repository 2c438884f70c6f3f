//! Batch requests, and repetition of the items that DynamoDB left unprocessed.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::{
    AttributeValue, DeleteRequest, KeysAndAttributes, PutRequest, WriteRequest,
};
use bentocache_driver::DriverError;
use futures_util::future::try_join_all;

use crate::call::{Call, Caller, Tries};
use crate::error;
use crate::item::{self, Item, KEY};

/// The most keys that one request reads.
const READS: usize = 100;
/// The most items that one request writes or deletes.
const WRITES: usize = 25;
/// The most concurrent requests of one call.
const AT_ONCE: usize = 8;

/// Reads the items of these distinct keys, in any order.
pub(crate) async fn read(
    caller: &Caller,
    call: Call,
    keys: &[&str],
) -> Result<HashMap<String, Item>, DriverError> {
    let mut found = HashMap::with_capacity(keys.len());
    for round in keys.chunks(READS * AT_ONCE) {
        for items in
            try_join_all(round.chunks(READS).map(|keys| read_some(caller, call, keys))).await?
        {
            for item in items {
                if let Some(AttributeValue::S(key)) = item.get(KEY) {
                    found.insert(key.clone(), item);
                }
            }
        }
    }
    Ok(found)
}

async fn read_some(caller: &Caller, call: Call, keys: &[&str]) -> Result<Vec<Item>, DriverError> {
    let mut found = Vec::with_capacity(keys.len());
    let mut wanted: Vec<Item> = keys.iter().map(|key| item::key(key)).collect();
    let mut tries = Tries::default();
    while !wanted.is_empty() {
        let count = wanted.len();
        let some =
            KeysAndAttributes::builder().set_keys(Some(wanted)).consistent_read(true).build();
        let some = some.map_err(error::config)?;
        let request = || {
            let request = caller.client.batch_get_item();
            let request = request.request_items(&caller.table, some.clone());
            request.customize().config_override(caller.settings()).send()
        };
        let mut answer = caller.send(call, request).await?;
        let items = answer.responses.take().and_then(|mut tables| tables.remove(&caller.table));
        found.extend(items.unwrap_or_default());
        let left_out = answer.unprocessed_keys.take();
        let left_out = left_out.and_then(|mut tables| tables.remove(&caller.table));
        wanted = left_out.map(|left_out| left_out.keys).unwrap_or_default();
        go_on(&mut tries, wanted.is_empty(), wanted.len() < count, call, caller).await?;
    }
    Ok(found)
}

/// Writes the items, whose keys are distinct.
pub(crate) async fn write(
    caller: &Caller,
    call: Call,
    items: impl Iterator<Item = Item>,
) -> Result<(), DriverError> {
    let requests: Result<Vec<_>, _> =
        items.map(|item| PutRequest::builder().set_item(Some(item)).build()).collect();
    let requests = requests.map_err(error::config)?.into_iter();
    change(caller, call, requests.map(|put| WriteRequest::builder().put_request(put).build())).await
}

/// Deletes the items of these distinct keys.
pub(crate) async fn delete(
    caller: &Caller,
    call: Call,
    keys: impl Iterator<Item = Item>,
) -> Result<(), DriverError> {
    let requests: Result<Vec<_>, _> =
        keys.map(|key| DeleteRequest::builder().set_key(Some(key)).build()).collect();
    let requests = requests.map_err(error::config)?.into_iter();
    let requests = requests.map(|delete| WriteRequest::builder().delete_request(delete).build());
    change(caller, call, requests).await
}

async fn change(
    caller: &Caller,
    call: Call,
    requests: impl Iterator<Item = WriteRequest>,
) -> Result<(), DriverError> {
    let requests: Vec<_> = requests.collect();
    for round in requests.chunks(WRITES * AT_ONCE) {
        let each = round.chunks(WRITES).map(|some| change_some(caller, call, some.to_vec()));
        try_join_all(each).await?;
    }
    Ok(())
}

async fn change_some(
    caller: &Caller,
    call: Call,
    mut wanted: Vec<WriteRequest>,
) -> Result<(), DriverError> {
    let mut tries = Tries::default();
    while !wanted.is_empty() {
        let count = wanted.len();
        let request = || {
            let request = caller.client.batch_write_item();
            let request = request.request_items(&caller.table, wanted.clone());
            request.customize().config_override(caller.settings()).send()
        };
        let mut answer = caller.send(call, request).await?;
        let left_out = answer.unprocessed_items.take();
        let left_out = left_out.and_then(|mut tables| tables.remove(&caller.table));
        wanted = left_out.unwrap_or_default();
        go_on(&mut tries, wanted.is_empty(), wanted.len() < count, call, caller).await?;
    }
    Ok(())
}

/// Pauses before unprocessed items are sent again, and gives up without progress.
async fn go_on(
    tries: &mut Tries,
    is_done: bool,
    has_progress: bool,
    call: Call,
    caller: &Caller,
) -> Result<(), DriverError> {
    if is_done {
        return Ok(());
    }
    if has_progress {
        *tries = Tries::default();
    }
    caller.trouble.note(error::THROTTLED);
    if tries.next().await { Ok(()) } else { Err(error::left_out(call.doing, &caller.table)) }
}
