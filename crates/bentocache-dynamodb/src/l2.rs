//! L2.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use aws_sdk_dynamodb::types::ReturnValue;
use bentocache_driver::{
    Capabilities, DriverError, ErrorKind, KeyStream, L2Driver, LinkStream, Write, on_runtime,
};
use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::builder::DynamoDb;
use crate::call::{Call, Caller};
use crate::item::{self, ALIVE, END, MAX_KEY, MAX_VALUE, TTL, VALUE};
use crate::scan::{self, Scan};
use crate::{batch, error, table};

/// The most concurrent requests for a delete of many keys.
const AT_ONCE: usize = 32;

impl L2Driver for DynamoDb {
    fn name(&self) -> &'static str {
        "dynamodb"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
            .with_atomic_pull()
            .with_atomic_compare()
            .with_native_expiry()
            .with_max_value(MAX_VALUE)
            .with_max_key(MAX_KEY)
    }

    async fn connect(&self) -> Result<(), DriverError> {
        let call = Box::pin(async {
            let looked = table::look(self.caller().await?).await;
            looked.map_err(|error| match error.kind() {
                // It does not go away by itself, so the build must fail.
                ErrorKind::Denied => {
                    DriverError::new(ErrorKind::Config, error.to_string()).with_source(error)
                }
                _ => error,
            })
        });
        self.watched(call).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let call = Box::pin(async {
            let caller = self.caller().await?;
            if !item::is_possible(key) {
                return Ok(None);
            }
            let request = || {
                let request = caller.client.get_item().table_name(&caller.table);
                request
                    .set_key(Some(item::key(key)))
                    .consistent_read(true)
                    .customize()
                    .config_override(caller.settings())
                    .send()
            };
            let answer = caller.send(Call::again("get"), request).await?;
            Ok(answer.item.and_then(|found| item::read(found, item::now())))
        });
        self.watched(call).await
    }

    async fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, DriverError> {
        let call = Box::pin(async {
            let caller = self.caller().await?;
            // A batch must not name a key twice.
            let mut seen = HashSet::new();
            let possible = keys.iter().copied().filter(|key| item::is_possible(key));
            let wanted: Vec<&str> = possible.filter(|key| seen.insert(*key)).collect();
            let found = batch::read(caller, Call::again("get"), &wanted).await?;
            let now = item::now();
            let found: HashMap<String, Bytes> = found
                .into_iter()
                .filter_map(|(key, found)| Some((key, item::read(found, now)?)))
                .collect();
            Ok(keys.iter().map(|key| found.get(*key).cloned()).collect())
        });
        self.watched(call).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        let call = Box::pin(async {
            let caller = self.caller().await?;
            item::check(key, &value)?;
            let written = item::write(key, &value, ttl, item::now());
            let request = || {
                let request = caller.client.put_item().table_name(&caller.table);
                let request = request.set_item(Some(written.clone()));
                request.customize().config_override(caller.settings()).send()
            };
            caller.send(Call::again("set"), request).await.map(drop)
        });
        self.watched(call).await
    }

    async fn set_many(&self, writes: &[Write<'_>]) -> Result<(), DriverError> {
        let call = Box::pin(async {
            let caller = self.caller().await?;
            for write in writes {
                item::check(write.key, &write.value)?;
            }
            let now = item::now();
            // A batch must not name a key twice: the last one wins.
            let last: HashMap<&str, &Write<'_>> =
                writes.iter().map(|write| (write.key, write)).collect();
            let items =
                last.values().map(|write| item::write(write.key, &write.value, write.ttl, now));
            batch::write(caller, Call::again("set"), items).await
        });
        self.watched(call).await
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        let call = Box::pin(async {
            let caller = self.caller().await?;
            let possible: Vec<&str> =
                keys.iter().copied().filter(|key| item::is_possible(key)).collect();
            let mut count = 0;
            // One by one, because a batch does not report which items existed.
            for some in possible.chunks(AT_ONCE) {
                let call = Call::again("delete");
                let each = some.iter().map(|key| take(caller, call, key));
                count += try_join_all(each).await?.iter().flatten().count();
            }
            Ok(count as u64)
        });
        self.watched(call).await
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        let call = Box::pin(async {
            let caller = self.caller().await?;
            if prefix.is_empty() {
                return Err(error::refused(
                    "a clear of everything would delete whatever else is in the table; set a prefix \
                     for the store",
                ));
            }
            let call = Call::again("clear");
            let mut scan = Scan::new(caller.clone(), call, prefix);
            while let Some(page) = scan.page().await? {
                batch::delete(caller, call, page.iter().filter_map(scan::key)).await?;
            }
            Ok(())
        });
        self.watched(call).await
    }

    async fn pull(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let call = Box::pin(async {
            let caller = self.caller().await?;
            if !item::is_possible(key) {
                return Ok(None);
            }
            take(caller, Call::once("pull"), key).await
        });
        self.watched(call).await
    }

    async fn insert(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, DriverError> {
        let call = Box::pin(async {
            let caller = self.caller().await?;
            item::check(key, &value)?;
            let now = item::now();
            let written = item::write(key, &value, ttl, now);
            let request = || {
                let mut request = caller.client.put_item().table_name(&caller.table);
                for (name, value) in item::times(now) {
                    request = request.expression_attribute_values(name, value);
                }
                request
                    .set_item(Some(written.clone()))
                    .condition_expression(format!("attribute_not_exists(#v) OR NOT {ALIVE}"))
                    .expression_attribute_names("#v", VALUE)
                    .expression_attribute_names("#e", END)
                    .expression_attribute_names("#t", TTL)
                    .customize()
                    .config_override(caller.settings())
                    .send()
            };
            Ok(caller.send_if(Call::once("insert"), request).await?.is_some())
        });
        self.watched(call).await
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        _: Option<Duration>,
    ) -> Result<bool, DriverError> {
        let call = Box::pin(async {
            let caller = self.caller().await?;
            if !item::is_possible(key) {
                return Ok(false);
            }
            item::check(key, &value)?;
            let now = item::now();
            let request = || {
                let mut request = caller.client.update_item().table_name(&caller.table);
                for (name, value) in item::times(now) {
                    request = request.expression_attribute_values(name, value);
                }
                request
                    .set_key(Some(item::key(key)))
                    .update_expression("SET #v = :new")
                    .condition_expression(format!("#v = :old AND {ALIVE}"))
                    .expression_attribute_values(":new", item::value(&value))
                    .expression_attribute_values(":old", item::value(expected))
                    .expression_attribute_names("#v", VALUE)
                    .expression_attribute_names("#e", END)
                    .expression_attribute_names("#t", TTL)
                    .customize()
                    .config_override(caller.settings())
                    .send()
            };
            Ok(caller.send_if(Call::once("update"), request).await?.is_some())
        });
        self.watched(call).await
    }

    async fn touch(&self, key: &str, ttl: Option<Duration>) -> Result<bool, DriverError> {
        let call = Box::pin(async {
            let caller = self.caller().await?;
            if !item::is_possible(key) {
                return Ok(false);
            }
            let now = item::now();
            let ends = item::ends(ttl, now);
            let request = || {
                let mut request = caller.client.update_item().table_name(&caller.table);
                for (name, value) in item::times(now) {
                    request = request.expression_attribute_values(name, value);
                }
                request = match &ends {
                    Some((end, seconds)) => request
                        .update_expression("SET #e = :end, #t = :ttl")
                        .expression_attribute_values(":end", end.clone())
                        .expression_attribute_values(":ttl", seconds.clone()),
                    None => request.update_expression("REMOVE #e, #t"),
                };
                request
                    .set_key(Some(item::key(key)))
                    .condition_expression(format!("attribute_exists(#v) AND {ALIVE}"))
                    .expression_attribute_names("#v", VALUE)
                    .expression_attribute_names("#e", END)
                    .expression_attribute_names("#t", TTL)
                    .customize()
                    .config_override(caller.settings())
                    .send()
            };
            Ok(caller.send_if(Call::again("touch"), request).await?.is_some())
        });
        self.watched(call).await
    }

    async fn delete_if(&self, key: &str, value: &[u8]) -> Result<bool, DriverError> {
        let call = Box::pin(async {
            let caller = self.caller().await?;
            if !item::is_possible(key) {
                return Ok(false);
            }
            let now = item::now();
            let request = || {
                let mut request = caller.client.delete_item().table_name(&caller.table);
                for (name, value) in item::times(now) {
                    request = request.expression_attribute_values(name, value);
                }
                request
                    .set_key(Some(item::key(key)))
                    .condition_expression(format!("#v = :old AND {ALIVE}"))
                    .expression_attribute_values(":old", item::value(value))
                    .expression_attribute_names("#v", VALUE)
                    .expression_attribute_names("#e", END)
                    .expression_attribute_names("#t", TTL)
                    .customize()
                    .config_override(caller.settings())
                    .send()
            };
            Ok(caller.send_if(Call::once("delete"), request).await?.is_some())
        });
        self.watched(call).await
    }

    fn link(&self) -> Option<LinkStream> {
        Some(self.probe.reports())
    }

    fn keys(&self, prefix: &str) -> KeyStream {
        let prefix = prefix.to_owned();
        let caller = self.own_caller();
        let pages = stream::once(async move {
            let caller = on_runtime("dynamodb", caller).await?;
            let scan = Scan::new(caller, Call::again("list keys"), &prefix);
            Ok(stream::try_unfold(scan, async |mut scan| {
                let page = on_runtime("dynamodb", scan.page()).await?;
                Ok::<_, DriverError>(page.map(|page| (page, scan)))
            }))
        });
        let keys = pages.try_flatten().map_ok(|page| {
            let now = item::now();
            let alive = page.into_iter().filter(move |found| item::is_alive(found, now));
            stream::iter(alive.filter_map(|found| scan::name(&found).map(str::to_owned)).map(Ok))
        });
        keys.try_flatten().boxed()
    }

    fn trouble(&self) -> Option<String> {
        self.last_trouble()
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        let call = Box::pin(async {
            self.close();
            Ok(())
        });
        self.watched(call).await
    }
}

/// Deletes an item and returns its value.
async fn take(caller: &Caller, call: Call, key: &str) -> Result<Option<Bytes>, DriverError> {
    let request = || {
        let request = caller.client.delete_item().table_name(&caller.table);
        request
            .set_key(Some(item::key(key)))
            .return_values(ReturnValue::AllOld)
            .customize()
            .config_override(caller.settings())
            .send()
    };
    let answer = caller.send(call, request).await?;
    Ok(answer.attributes.and_then(|found| item::read(found, item::now())))
}
