use bentocache::{Cache, Error};

#[derive(Clone)]
struct User;

async fn store(cache: &Cache) -> Result<(), Error> {
    cache.set("user:42", User).await
}

fn main() {}
