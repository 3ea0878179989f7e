//! What every store promises; the words are those of `Store`.

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use immich_backup_core::model::{Class, Sha256};
use immich_backup_core::repository::checksum::Comparison;
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::store::{Attributes, Begin, Created, Kind, Store, StoreError, read_all};
use std::sync::Arc;
use tokio::task::JoinSet;

pub fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

pub fn file(content: &[u8]) -> Attributes {
    Attributes {
        kind: Kind::File(Class::Original),
        sha256: Some(Sha256::of(content)),
        mtime_ns: Some(1_234_567_890_123_456_789),
        size_bytes: Some(content.len() as u64),
    }
}

pub async fn create(store: &dyn Store, name: &str, content: &[u8]) -> Created {
    store.create(&key(name), Bytes::copy_from_slice(content), &file(content)).await.unwrap()
}

pub async fn read(store: &dyn Store, name: &str) -> Vec<u8> {
    read_all(store, &key(name), u64::MAX).await.unwrap().to_vec()
}

pub async fn list(store: &dyn Store, prefix: &str, after: Option<&str>) -> Vec<String> {
    let after = after.map(key);
    store.list(prefix, after.as_ref()).map_ok(|found| found.key.to_string()).try_collect().await.unwrap()
}

fn is_missing<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::NotFound { .. }))
}

/// What a store gives for `key`, however it says that there is nothing.
pub async fn get(store: &dyn Store, name: &str, range: Option<std::ops::Range<u64>>) -> Result<Vec<u8>, StoreError> {
    let mut content = Vec::new();
    let mut pieces = store.get(&key(name), range).await?;
    while let Some(piece) = pieces.next().await {
        content.extend_from_slice(&piece?);
    }
    Ok(content)
}

pub async fn writing_begins_only_behind_the_identity_that_is_there(store: Arc<dyn Store>) {
    let identity = Bytes::from_static(b"{\"format\":1}\n");
    let writing = Begin::Writing { leftovers: None };
    let refused = store.begin(&identity, writing).await;
    assert!(matches!(&refused, Err(StoreError::NotFound { .. })), "{refused:?}");
    assert_eq!(store.begin(&identity, Begin::Repository).await.unwrap(), Created::New);
    for what in [Begin::Repository, writing] {
        assert_eq!(store.begin(&identity, what).await.unwrap(), Created::Exists);
        for other in [&b"{\"format\":2}\n"[..], b"{\"format\":1}", b""] {
            let refused = store.begin(&Bytes::from_static(other), what).await;
            assert!(matches!(&refused, Err(StoreError::OtherContent { key }) if key == "format.json"), "{refused:?}");
        }
    }
    assert_eq!(read(store.as_ref(), "format.json").await, identity);
}

pub async fn of_sixteen_creates_at_once_one_wins_and_its_content_stands(store: Arc<dyn Store>) {
    for round in 0..8 {
        let name = format!("library/round-{round}/a.jpg");
        let contents: Vec<_> = (0..16_u64).map(|writer| super::noise(writer + 1, 300_000)).collect();
        let mut creating = JoinSet::new();
        for content in contents.clone() {
            let (store, name) = (Arc::clone(&store), name.clone());
            creating.spawn(async move { (create(store.as_ref(), &name, &content).await, content) });
        }
        let ended = creating.join_all().await;
        let winners: Vec<_> = ended.iter().filter(|(created, _)| *created == Created::New).collect();
        assert_eq!(winners.len(), 1);
        assert!(ended.iter().all(|(created, _)| matches!(created, Created::New | Created::Exists)));
        assert_eq!(read(store.as_ref(), &name).await, winners[0].1);
    }
}

pub async fn what_exists_is_never_changed(store: Arc<dyn Store>) {
    assert_eq!(create(store.as_ref(), "a/b", b"first").await, Created::New);
    assert_eq!(create(store.as_ref(), "a/b", b"second, longer").await, Created::Exists);
    let log = Attributes::of(Kind::Log, Sha256::of(b""));
    assert_eq!(store.create(&key("a/b"), Bytes::from_static(b""), &log).await.unwrap(), Created::Exists);
    let mut upload = store.create_streamed(&key("a/b"), &file(b"third")).await.unwrap();
    upload.write(Bytes::from_static(b"third")).await.unwrap();
    assert_eq!(upload.finish(&Sha256::of(b"third")).await.unwrap(), Created::Exists);
    assert_eq!(read(store.as_ref(), "a/b").await, b"first");
    assert_eq!(list(store.as_ref(), "", None).await, ["a/b"]);
}

pub async fn a_streamed_object_is_not_to_be_seen_before_it_is_finished(store: Arc<dyn Store>) {
    let (first, second) = (super::noise(1, 1 << 20), super::noise(2, 100));
    let mut upload = store.create_streamed(&key("library/movie.mp4"), &Attributes { sha256: None, ..file(b"") }).await.unwrap();
    upload.write(Bytes::from(first.clone())).await.unwrap();
    upload.write(Bytes::from(second.clone())).await.unwrap();
    assert_eq!(store.head(&key("library/movie.mp4")).await.unwrap(), None);
    assert!(list(store.as_ref(), "", None).await.is_empty());
    assert!(is_missing(&get(store.as_ref(), "library/movie.mp4", None).await));
    let whole = [first, second].concat();
    assert_eq!(upload.finish(&Sha256::of(&whole)).await.unwrap(), Created::New);
    assert_eq!(read(store.as_ref(), "library/movie.mp4").await, whole);
}

pub async fn a_dropped_upload_never_was(store: Arc<dyn Store>) {
    let mut upload = store.create_streamed(&key("library/movie.mp4"), &file(b"")).await.unwrap();
    upload.write(Bytes::from_static(b"half of it")).await.unwrap();
    drop(upload);
    assert!(list(store.as_ref(), "", None).await.is_empty());
    assert_eq!(create(store.as_ref(), "library/movie.mp4", b"whole").await, Created::New);
}

pub async fn an_upload_without_pieces_is_an_empty_object(store: Arc<dyn Store>) {
    let upload = store.create_streamed(&key("library/empty"), &file(b"")).await.unwrap();
    assert_eq!(upload.finish(&Sha256::of(b"")).await.unwrap(), Created::New);
    assert_eq!(store.head(&key("library/empty")).await.unwrap().unwrap().size_bytes, 0);
}

pub async fn bytes_come_back_whole_and_by_range(store: Arc<dyn Store>) {
    let content = super::noise(7, (2 << 20) + 17);
    create(store.as_ref(), "library/a", &content).await;
    let end = content.len() as u64;
    for (range, expected) in [
        (None, &content[..]),
        (Some(0..1), &content[..1]),
        (Some(1_000_000..2_000_000), &content[1_000_000..2_000_000]),
        (Some(end - 5..end + 1_000), &content[content.len() - 5..]),
        (Some(end..end + 1), &[][..]),
        (Some(end + 10..end + 20), &[][..]),
        (Some(3..3), &[][..]),
    ] {
        assert_eq!(get(store.as_ref(), "library/a", range.clone()).await.unwrap(), expected, "{range:?}");
    }
}

pub async fn reading_what_is_not_there_is_told_from_failing(store: Arc<dyn Store>) {
    create(store.as_ref(), "library/a", b"x").await;
    for name in ["nothing", "library", "library/b", "library/a/below", "nothing/at/all"] {
        assert!(is_missing(&get(store.as_ref(), name, None).await), "{name}");
        assert!(is_missing(&get(store.as_ref(), name, Some(0..1)).await), "{name}");
        assert_eq!(store.head(&key(name)).await.unwrap(), None, "{name}");
    }
}

pub async fn a_look_says_name_and_size(store: Arc<dyn Store>) {
    create(store.as_ref(), "library/a", b"12345").await;
    let found = store.head(&key("library/a")).await.unwrap().unwrap();
    assert_eq!((found.key.as_str(), found.size_bytes), ("library/a", 5));
    assert!(found.checksum.is_none_or(|checksum| checksum.compare(b"12345") == Comparison::Same));
}

pub async fn a_listing_comes_in_the_order_of_the_keys_bytes(store: Arc<dyn Store>) {
    let names = ["a", "a!b/x", "b-c", "b.c", "b/c", "b/c-d/e", "b/c.d", "b0", "é/ü", "é.x", "Z/z", "a b/c", "zz/\u{10FFFF}", "zz/\u{E000}", "%hashed/x", "b/~"];
    for name in names {
        assert_eq!(create(store.as_ref(), name, name.as_bytes()).await, Created::New, "{name}");
    }
    // By the keys' bytes; or folder by folder, where the store itself is one of folders.
    let mut by_bytes = names.to_vec();
    by_bytes.sort_unstable();
    let mut by_folders = names.to_vec();
    by_folders.sort_unstable_by(|a, b| a.split('/').cmp(b.split('/')));
    // Azurite compares UTF-16.
    let mut by_utf16 = names.to_vec();
    by_utf16.sort_unstable_by(|a, b| a.encode_utf16().cmp(b.encode_utf16()));
    let listed = list(store.as_ref(), "", None).await;
    assert!(listed == by_bytes || listed == by_folders || listed == by_utf16, "{listed:?}");
    let flat = ["log/0001-a", "log/0001.", "log/0002", "log/1", "log/a", "log/é"];
    for name in flat {
        assert_eq!(create(store.as_ref(), name, b"").await, Created::New, "{name}");
    }
    for after in flat.iter().copied().chain(["log/0", "log/0001", "log/0003", "log/~", "log/\u{10FFFF}"]) {
        let rest: Vec<_> = flat.iter().copied().filter(|name| *name > after).collect();
        assert_eq!(list(store.as_ref(), "log/", Some(after)).await, rest, "after {after}");
    }
    let mut below = list(store.as_ref(), "b/", None).await;
    below.sort_unstable();
    assert_eq!(below, ["b/c", "b/c-d/e", "b/c.d", "b/~"]);
    assert!(list(store.as_ref(), "nothing/", None).await.is_empty());
    let mut sizes: Vec<_> = store.list("b/", None).map_ok(|found| found.size_bytes).try_collect().await.unwrap();
    sizes.sort_unstable();
    assert_eq!(sizes, [3, 3, 5, 7]);
}

/// More than many stores have on a page, in one folder and in many.
pub async fn a_listing_of_many_pages_shows_each_object_once(store: Arc<dyn Store>, objects: usize) {
    let (flat, nested) = (objects * 20 / 23, objects * 3 / 23);
    let names: Vec<_> = (0..flat).map(|n| format!("library/{n}")).chain((0..nested).map(|n| format!("library/nested/{}/{}/x", n / 100, n % 100))).collect();
    let mut creating = JoinSet::new();
    for part in names.chunks(names.len().div_ceil(16)) {
        let (store, part) = (Arc::clone(&store), part.to_vec());
        creating.spawn(async move {
            for name in part {
                create(store.as_ref(), &name, b"").await;
            }
        });
    }
    creating.join_all().await;
    let mut expected = names;
    expected.sort_unstable();
    for prefix in ["", "library/"] {
        let mut listed = list(store.as_ref(), prefix, None).await;
        listed.sort_unstable();
        // Not assert_eq: nobody reads 23,000 names.
        assert!(listed == expected, "{} of {} listed below `{prefix}`", listed.len(), expected.len());
    }
}

pub async fn deleting_twice_is_no_error(store: Arc<dyn Store>) {
    create(store.as_ref(), "library/a", b"x").await;
    create(store.as_ref(), "library/b", b"y").await;
    for name in ["library/a", "library/a", "nothing/at/all", "library/b/below"] {
        store.delete(&key(name)).await.unwrap();
    }
    assert_eq!(list(store.as_ref(), "", None).await, ["library/b"]);
    assert_eq!(create(store.as_ref(), "library/a", b"again").await, Created::New);
}

pub async fn an_object_may_be_empty(store: Arc<dyn Store>) {
    assert_eq!(create(store.as_ref(), "library/empty", b"").await, Created::New);
    assert_eq!(read(store.as_ref(), "library/empty").await, b"");
    assert_eq!(create(store.as_ref(), "library/empty", b"not").await, Created::Exists);
}

pub async fn odd_names_are_kept_byte_for_byte(store: Arc<dyn Store>) {
    let long = "é".repeat(127) + "x";
    let deep = vec!["d"; 450].join("/");
    let names = [
        " ",
        "a ",
        " a",
        "~",
        "a:b?*\"<>|.jpg",
        "'$(id)'",
        "-rf",
        "a%2Fb",
        "%",
        "#?&=+;",
        ".hidden",
        "...",
        "..a",
        "e\u{301}",
        "\u{e9}",
        "日本語/🌅.heic",
        "\u{202e}gpj.exe",
        "COM1",
        "tmp.jpg",
        "library/tmp/x",
        "log",
        &long,
        &deep,
    ];
    for name in names {
        assert_eq!(create(store.as_ref(), name, name.as_bytes()).await, Created::New, "{name}");
    }
    for name in names {
        assert_eq!(read(store.as_ref(), name).await, name.as_bytes(), "{name}");
    }
    let mut expected = names.to_vec();
    expected.sort_unstable();
    assert_eq!(list(store.as_ref(), "", None).await, expected);
}

pub async fn a_name_that_cannot_be_is_answered_and_harms_nothing(store: Arc<dyn Store>) {
    create(store.as_ref(), "library/folder/file", b"x").await;
    // An object store can hold all of these at once, a directory cannot: both is right, an error is not.
    for name in ["library/folder", "library/folder/file/below", "library/folder/file/deep/below"] {
        let created = create(store.as_ref(), name, b"y").await;
        let mut upload = store.create_streamed(&key(name), &file(b"y")).await.unwrap();
        upload.write(Bytes::from_static(b"y")).await.unwrap();
        let streamed = upload.finish(&Sha256::of(b"y")).await.unwrap();
        assert!(
            matches!((created, streamed), (Created::New, Created::Exists) | (Created::Unnameable, Created::Unnameable)),
            "{name}: {created:?}, {streamed:?}"
        );
    }
    assert_eq!(read(store.as_ref(), "library/folder/file").await, b"x");
}

pub async fn a_barrier_covers_what_was_created_and_what_was_found(store: Arc<dyn Store>) {
    store.sync().await.unwrap();
    create(store.as_ref(), "library/a", b"x").await;
    create(store.as_ref(), "library/a", b"x").await;
    store.head(&key("library/a")).await.unwrap();
    let mut syncing = JoinSet::new();
    for _ in 0..4 {
        let store = Arc::clone(&store);
        syncing.spawn(async move { store.sync().await });
    }
    assert!(syncing.join_all().await.iter().all(Result::is_ok));
    store.sync().await.unwrap();
}

pub async fn a_create_that_is_given_up_leaves_all_or_nothing(store: Arc<dyn Store>) {
    let content = super::noise(3, 4 << 20);
    for number in 0..20_u64 {
        let name = format!("library/{number}");
        let creating = create(store.as_ref(), &name, &content);
        let wait = std::time::Duration::from_millis(number / 5);
        // Both ways of giving up: at the first pause, and after a while.
        let _ended = if number % 2 == 0 { creating.now_or_never() } else { tokio::time::timeout(wait, creating).await.ok() };
    }
    // What had begun may end.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    for name in list(store.as_ref(), "", None).await {
        assert!(read(store.as_ref(), &name).await == content, "{name} is torn");
    }
}

pub async fn a_large_object_comes_in_parts_and_is_whole(store: Arc<dyn Store>) {
    // Two parts and a bit; one part and nothing; a part less one byte.
    for (name, len) in [("three", (33 << 20) + 7), ("one", 16 << 20), ("nearly", (16 << 20) - 1)] {
        let content = super::noise(11, len);
        let name = format!("library/{name}.mp4");
        let attributes = Attributes { sha256: None, ..file(&content) };
        let send = async |content: &[u8]| {
            let mut upload = store.create_streamed(&key(&name), &attributes).await.unwrap();
            for piece in content.chunks(1 << 20) {
                upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            upload.finish(&Sha256::of(content)).await.unwrap()
        };
        assert_eq!(send(&content).await, Created::New, "{name}");
        assert!(read(store.as_ref(), &name).await == content, "{name} has other bytes");
        let found = store.head(&key(&name)).await.unwrap().unwrap();
        assert_eq!(found.size_bytes, len as u64);
        assert!(found.checksum.is_none_or(|checksum| checksum.compare(&content) == Comparison::Same), "{:?}", found.checksum);
        // A store may refuse before it has read all of it: then the answer can be lost, and only what it holds tells whose it is.
        assert_eq!(send(&super::noise(12, len)).await, Created::Exists, "{name}");
        assert!(read(store.as_ref(), &name).await == content, "{name} was replaced");
        let range = get(store.as_ref(), &name, Some(1_000_000..9_000_000)).await.unwrap();
        assert!(range == content[1_000_000..9_000_000]);
    }
}

/// Hands all promises that a store is made anew for to `$each`: one that is added is looked at for every store.
#[allow(unused_macros, reason = "each test binary uses a part of this module")]
macro_rules! each_promise {
    ($each:ident, $make:expr) => {
        $each! { $make;
            writing_begins_only_behind_the_identity_that_is_there
            of_sixteen_creates_at_once_one_wins_and_its_content_stands
            what_exists_is_never_changed
            a_streamed_object_is_not_to_be_seen_before_it_is_finished
            a_dropped_upload_never_was
            an_upload_without_pieces_is_an_empty_object
            bytes_come_back_whole_and_by_range
            reading_what_is_not_there_is_told_from_failing
            a_look_says_name_and_size
            a_listing_comes_in_the_order_of_the_keys_bytes
            deleting_twice_is_no_error
            an_object_may_be_empty
            odd_names_are_kept_byte_for_byte
            a_name_that_cannot_be_is_answered_and_harms_nothing
            a_barrier_covers_what_was_created_and_what_was_found
            a_create_that_is_given_up_leaves_all_or_nothing
            a_large_object_comes_in_parts_and_is_whole
        }
    };
}
#[allow(unused_imports, reason = "each test binary uses a part of this module")]
pub(crate) use each_promise;
