//! An adapter of one's own, complete, and a cache on it. The database is a sorted map, so that it
//! runs anywhere.

mod tree;

use bentocache::{BentoCache, Memory, Store};
use bentocache_sql::DatabaseDriver;
use tree::Tree;

#[allow(clippy::print_stdout)]
#[tokio::main]
async fn main() -> bentocache::Result<()> {
    let driver = DatabaseDriver::new(Tree::default()).table_name("cache");
    let store = Store::new().l1(Memory::new()).l2(driver);
    let bento = BentoCache::builder().store("main", store).build().await?;
    bento.set("user:42", "Ada".to_owned()).skip_l1_write(true).await?;
    println!("{:?}", bento.get::<String>("user:42").await?);
    bento.disconnect().await
}
