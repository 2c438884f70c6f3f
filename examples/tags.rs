//! Tags: invalidate many values at once, whatever their keys are.

#![allow(clippy::print_stdout)]

use bentocache::{BentoCache, Failure, Memory, Store};

async fn show(cache: &BentoCache, when: &str) -> Result<usize, bentocache::Error> {
    println!("{when}");
    let mut found = 0;
    for key in ["post:1", "post:2", "post:3"] {
        let post: Option<String> = cache.get(key).await?;
        println!("  {key}: {}", post.as_deref().unwrap_or("-"));
        found += usize::from(post.is_some());
    }
    Ok(found)
}

#[tokio::main]
async fn main() -> Result<(), bentocache::Error> {
    let store = Store::new().l1(Memory::new());
    let cache = BentoCache::builder().store("posts", store).build().await?;

    cache.set("post:1", "by author 7".to_owned()).tags(["posts", "author:7"]).await?;
    cache.set("post:2", "by author 8".to_owned()).tags(["posts", "author:8"]).await?;
    // A factory may add tags that depend on what it found.
    let load = |cx: bentocache::Context<String>| async move {
        cx.tags(["author:7"]);
        Ok::<_, Failure>("by author 7 too".to_owned())
    };
    cache.get_or_set("post:3", load).tags(["posts"]).await?;
    assert_eq!(show(&cache, "all posts").await?, 3);

    cache.delete_by_tag(["author:7"]).await?;
    assert_eq!(show(&cache, "after delete_by_tag([\"author:7\"])").await?, 1);

    // A value that is written after the invalidation is valid.
    cache.set("post:1", "a new post by author 7".to_owned()).tags(["author:7"]).await?;
    assert_eq!(show(&cache, "after a new post").await?, 2);

    cache.disconnect_all().await
}
