use bentocache::{Cache, Error};

async fn load(cache: &Cache) -> Result<bool, Error> {
    let value = cache.get("count").await?;
    Ok(value.is_some())
}

fn main() {}
