//! Scans the whole table, page by page.

use aws_sdk_dynamodb::types::AttributeValue;
use bentocache_driver::DriverError;

use crate::call::{Call, Caller};
use crate::item::{self, END, Item, KEY, TTL};

/// Keys that start with a prefix, as DynamoDB compares: byte by byte.
pub(crate) struct Scan {
    caller: Caller,
    call: Call,
    prefix: String,
    next: Next,
}

enum Next {
    First,
    After(Item),
    Done,
}

impl Scan {
    pub(crate) fn new(caller: Caller, call: Call, prefix: &str) -> Self {
        Self { caller, call, prefix: prefix.to_owned(), next: Next::First }
    }

    /// Keys and ends of the items of the next page, which may be empty; `None` after the last page.
    pub(crate) async fn page(&mut self) -> Result<Option<Vec<Item>>, DriverError> {
        let start = match &self.next {
            Next::First => None,
            Next::After(key) => Some(key.clone()),
            Next::Done => return Ok(None),
        };
        let request = || {
            let mut request = self.caller.client.scan();
            if !self.prefix.is_empty() {
                let prefix = AttributeValue::S(self.prefix.clone());
                request = request
                    .filter_expression("begins_with(#k, :prefix)")
                    .expression_attribute_values(":prefix", prefix);
            }
            request
                .table_name(&self.caller.table)
                .consistent_read(true)
                .projection_expression("#k, #t, #e")
                .expression_attribute_names("#k", KEY)
                .expression_attribute_names("#t", TTL)
                .expression_attribute_names("#e", END)
                .set_exclusive_start_key(start.clone())
                .customize()
                .config_override(self.caller.settings())
                .send()
        };
        let answer = self.caller.send(self.call, request).await?;
        self.next = match answer.last_evaluated_key {
            Some(key) if !key.is_empty() => Next::After(key),
            _ => Next::Done,
        };
        let items = answer.items.unwrap_or_default().into_iter();
        // The service has filtered already, but a clear must not depend on it.
        let is_ours = |item: &Item| name(item).is_some_and(|key| key.starts_with(&self.prefix));
        Ok(Some(items.filter(is_ours).collect()))
    }
}

/// The key of an item.
pub(crate) fn name(item: &Item) -> Option<&str> {
    item.get(KEY)?.as_s().ok().map(String::as_str)
}

/// The key of an item in a request.
pub(crate) fn key(item: &Item) -> Option<Item> {
    name(item).map(item::key)
}
