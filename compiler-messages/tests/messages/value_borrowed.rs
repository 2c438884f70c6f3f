use bentocache::{Cache, Error};

async fn store(cache: &Cache) -> Result<(), Error> {
    cache.set("greeting", "hello").await
}

fn main() {}
