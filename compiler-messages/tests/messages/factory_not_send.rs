use std::rc::Rc;

use bentocache::{Cache, Error};

async fn load(cache: &Cache) -> Result<u32, Error> {
    let factory = |_| async {
        let shared = Rc::new(1);
        tokio::task::yield_now().await;
        Ok::<_, Error>(*shared)
    };
    cache.get_or_set("count", factory).await
}

fn main() {}
