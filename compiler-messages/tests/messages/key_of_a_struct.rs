use bentocache::{Cache, Error};

struct UserId(u64);

async fn delete(cache: &Cache, id: UserId) -> Result<bool, Error> {
    cache.delete(id).await
}

fn main() {}
