use bentocache::{Cache, Error};

struct Users {
    cache: Cache,
    table: String,
}

impl Users {
    async fn count(&self) -> Result<usize, Error> {
        self.cache.get_or_set("count", |_| async { Ok::<_, Error>(self.table.len()) }).await
    }
}

fn main() {}
