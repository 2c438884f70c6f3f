#![deny(unused_must_use)]

use bentocache::{Cache, Error};

async fn store(cache: &Cache) -> Result<(), Error> {
    cache.set("count", 1);
    Ok(())
}

fn main() {}
