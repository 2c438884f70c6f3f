use bentocache::{Cache, Error};

async fn load(cache: &Cache) -> Result<u32, Error> {
    cache.get_or_set("count", |_| Ok::<_, Error>(1)).await
}

fn main() {}
