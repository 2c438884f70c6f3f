//! Creates and checks the table.

use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
    TableDescription, TableStatus, TimeToLiveSpecification, TimeToLiveStatus,
};
use bentocache_driver::{DriverError, ErrorKind};

use crate::call::{Call, Caller};
use crate::error::Failure;
use crate::item::{self, KEY, TTL};
use crate::{batch, error};

/// The time limit for a new table.
const PATIENCE: Duration = Duration::from_secs(120);
/// The key of an item that does not exist.
const RIGHTS: &str = "bentocache:rights";
/// A condition that no item meets.
const NEVER: &str = "attribute_exists(#k) AND attribute_not_exists(#k)";
/// How often to check whether the table is ready.
const LOOK: Duration = Duration::from_millis(250);

/// Creates the table if it is missing, and enables the removal of expired items by DynamoDB. Many
/// processes may do so at once.
pub(crate) async fn create(caller: &Caller) -> Result<(), DriverError> {
    let call = Call::once("create the table");
    let key = KeySchemaElement::builder().attribute_name(KEY).key_type(KeyType::Hash).build();
    let key = key.map_err(error::config)?;
    let definition = AttributeDefinition::builder()
        .attribute_name(KEY)
        .attribute_type(ScalarAttributeType::S)
        .build()
        .map_err(error::config)?;
    let request = || {
        let request = caller.client.create_table().table_name(&caller.table);
        request
            .billing_mode(BillingMode::PayPerRequest)
            .key_schema(key.clone())
            .attribute_definitions(definition.clone())
            .customize()
            .config_override(caller.settings())
            .send()
    };
    match caller.try_send(call, request).await {
        Ok(_) => {}
        // Created by this process, or by another one just now.
        Err(failure) if failure.is("ResourceInUseException") => {}
        Err(failure) => return Err(caller.told(call, &failure)),
    }
    until_active(caller, call).await?;
    expire(caller).await
}

async fn until_active(caller: &Caller, call: Call) -> Result<(), DriverError> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        match describe(caller).await {
            Ok(table) if table.table_status == Some(TableStatus::Active) => {
                return check(&table, &caller.table);
            }
            Ok(_) => {}
            // The table is being created, or this node of the service does not know it yet.
            Err(failure) if failure.is("ResourceNotFoundException") => {}
            Err(failure) => return Err(caller.told(call, &failure)),
        }
        tokio::time::sleep(LOOK).await;
    }
    let table = &caller.table;
    let message = format!(
        "dynamodb: cannot create the table {table:?}: it is not active after {PATIENCE:?}; look at \
         it in the console"
    );
    Err(DriverError::new(ErrorKind::Unavailable, message))
}

async fn describe(caller: &Caller) -> Result<TableDescription, Failure> {
    let request = || {
        let request = caller.client.describe_table().table_name(&caller.table);
        request.customize().config_override(caller.settings()).send()
    };
    let answer = caller.try_send(Call::again("look at the table"), request).await?;
    Ok(answer.table.unwrap_or_else(|| TableDescription::builder().build()))
}

/// Whether the table has the required key.
fn check(table: &TableDescription, name: &str) -> Result<(), DriverError> {
    let is_text = table.attribute_definitions().iter().any(|definition| {
        definition.attribute_name == KEY && definition.attribute_type == ScalarAttributeType::S
    });
    match table.key_schema() {
        [key] if key.attribute_name == KEY && is_text => Ok(()),
        _ => Err(error::config(format!(
            "the table {name:?} has another key; it must be a partition key named `key` of type \
             string, and no sort key: name another table"
        ))),
    }
}

/// Enables the removal of expired items.
async fn expire(caller: &Caller) -> Result<(), DriverError> {
    if is_expiring(caller).await != Some(false) {
        return Ok(());
    }
    let call = Call::again("have expired items removed");
    let wanted = TimeToLiveSpecification::builder().attribute_name(TTL).enabled(true).build();
    let wanted = wanted.map_err(error::config)?;
    let request = || {
        let request = caller.client.update_time_to_live().table_name(&caller.table);
        let request = request.time_to_live_specification(wanted.clone());
        request.customize().config_override(caller.settings()).send()
    };
    match caller.try_send(call, request).await {
        Ok(_) => Ok(()),
        // An emulator without this feature.
        Err(failure) if failure.is("UnknownOperationException") => Ok(()),
        // Another process was faster.
        Err(_) if is_expiring(caller).await == Some(true) => Ok(()),
        Err(failure) => Err(caller.told(call, &failure)),
    }
}

/// Whether DynamoDB removes expired items; `None` if that cannot be determined.
async fn is_expiring(caller: &Caller) -> Option<bool> {
    let request = || {
        let request = caller.client.describe_time_to_live().table_name(&caller.table);
        request.customize().config_override(caller.settings()).send()
    };
    let answer = caller.try_send(Call::again("look at the table"), request).await.ok()?;
    let expiry = answer.time_to_live_description?;
    let is_ours = expiry.attribute_name.as_deref() == Some(TTL);
    let status = expiry.time_to_live_status?;
    Some(is_ours && matches!(status, TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling))
}

/// Checks the table when the cache is built.
pub(crate) async fn look(caller: &Caller) -> Result<(), DriverError> {
    let call = Call::again("look at the table");
    match describe(caller).await {
        Ok(table) => check(&table, &caller.table)?,
        // The user may have rights for items only.
        Err(failure) if failure.is("AccessDeniedException") => return rights(caller).await,
        Err(failure) => return Err(caller.told(call, &failure)),
    }
    if is_expiring(caller).await == Some(false) {
        tracing::warn!(
            table = caller.table,
            "dynamodb does not remove expired items; switch on Time To Live on the attribute `ttl`"
        );
    }
    rights(caller).await
}

/// Checks the rights for every operation: reads and deletes name an item that does not exist, and
/// no item meets the conditions of the writes.
async fn rights(caller: &Caller) -> Result<(), DriverError> {
    let (client, table) = (&caller.client, &caller.table);
    let key = || Some(item::key(RIGHTS));
    let settings = || caller.settings();
    caller
        .send(Call::again("get an item"), || {
            let request = client.get_item().table_name(table).set_key(key());
            request.customize().config_override(settings()).send()
        })
        .await?;
    caller
        .send_if(Call::again("put an item"), || {
            let request = client.put_item().table_name(table).set_item(key());
            let request = request.condition_expression(NEVER).expression_attribute_names("#k", KEY);
            request.customize().config_override(settings()).send()
        })
        .await?;
    caller
        .send_if(Call::again("update an item"), || {
            let request = client.update_item().table_name(table).set_key(key());
            let request = request.condition_expression(NEVER).expression_attribute_names("#k", KEY);
            request.customize().config_override(settings()).send()
        })
        .await?;
    try_write(caller).await?;
    batch::read(caller, Call::again("get a batch of items"), &[RIGHTS]).await?;
    let keys = std::iter::once(item::key(RIGHTS));
    batch::delete(caller, Call::again("write a batch of items"), keys).await
}

/// Checks that an item can be changed: a delete whose condition no item meets.
pub(crate) async fn try_write(caller: &Caller) -> Result<(), DriverError> {
    let delete = || {
        let request = caller.client.delete_item().table_name(&caller.table);
        request
            .set_key(Some(item::key(RIGHTS)))
            .condition_expression(NEVER)
            .expression_attribute_names("#k", KEY)
            .customize()
            .config_override(caller.settings())
            .send()
    };
    caller.send_if(Call::again("delete an item"), delete).await.map(drop)
}
