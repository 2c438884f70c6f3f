use bentocache::{Cache, Error};

#[derive(Debug)]
struct NotFound;

async fn load(cache: &Cache) -> Result<u32, Error> {
    cache.get_or_set("count", |_| async { Err::<u32, _>(NotFound) }).await
}

fn main() {}
