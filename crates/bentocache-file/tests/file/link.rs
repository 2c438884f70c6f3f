//! Reports of a directory that cannot be written, and can be again.

use std::fs;
use std::future::poll_fn;
use std::time::Duration;

use bentocache_driver::{ErrorKind, L2Driver, Link, LinkStream};
use bentocache_file::File;
use bytes::Bytes;

use crate::common::temporary;

async fn next(link: &mut LinkStream) -> Link {
    let report = poll_fn(|cx| link.as_mut().poll_next(cx));
    tokio::time::timeout(Duration::from_secs(30), report).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_driver_reports_when_its_directory_works_again() {
    let (directory, _) = temporary();
    let root = directory.path().join("cache");
    let file = File::new(&root);
    file.connect().await.unwrap();
    let mut link = file.link().unwrap();
    for _ in 0..2 {
        fs::remove_dir_all(&root).unwrap();
        fs::write(&root, b"in the way").unwrap();
        let error = file.set("key", Bytes::from_static(b"value"), None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert_eq!(next(&mut link).await, Link::Lost);
        fs::remove_file(&root).unwrap();
        assert_eq!(next(&mut link).await, Link::Restored);
        file.set("key", Bytes::from_static(b"value"), None).await.unwrap();
    }
}
