use bentocache::{Cache, Error};

async fn store<T: Send + Sync>(cache: &Cache, value: T) -> Result<(), Error> {
    cache.set("value", value).await
}

fn main() {}
