use bentocache::{Cache, Error};

async fn load(cache: &Cache) -> Result<u32, Error> {
    cache.get_or_set("count", |_| async { Ok(1) }).await
}

fn main() {}
