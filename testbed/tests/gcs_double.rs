//! What the double of Google Cloud Storage promises, asked as a client would.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use immich_backup_testbed::gcs::{Description, Double, Identity, Options, Permissions};
use md5::{Digest, Md5};
use reqwest::Method;
use reqwest::blocking::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const KIB: usize = 1024;
const CHUNK: usize = 256 * KIB;
const SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_write";

/// A double with an `owner` who may do everything and a `writer` who may not delete.
struct Bench {
    double: Double,
    client: Client,
    token: String,
}

impl Bench {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let identities = vec![Identity::new("owner", Permissions::ALL), Identity::new("writer", Permissions::NO_DELETE)];
        let double = Double::start(Options { identities, ..options });
        let client = Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let token = double.access_token("owner");
        Self { double, client, token }
    }

    /// Speaks for another identity from now on.
    fn speak_as(mut self, identity: &str) -> Self {
        self.token = self.double.access_token(identity);
        self
    }

    fn plain(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.double.url()))
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.plain(method, path).bearer_auth(&self.token)
    }

    fn put(&self, key: &str, bytes: impl Into<Vec<u8>>) -> RequestBuilder {
        self.call(Method::PUT, &format!("/bucket/{key}")).body(bytes.into())
    }

    fn get(&self, path: &str) -> Response {
        self.call(Method::GET, path).send().unwrap()
    }

    fn json(&self, path: &str) -> Value {
        read_json(self.get(path))
    }

    /// Begins a resumable upload and returns the session's address.
    fn begin(&self, query: &str, resource: &Value) -> String {
        let response = self.begin_raw(query, resource);
        assert_eq!(response.status(), 200);
        header(&response, "location")
    }

    fn begin_raw(&self, query: &str, resource: &Value) -> Response {
        let path = format!("/upload/storage/v1/b/bucket/o?uploadType=resumable&{query}");
        self.call(Method::POST, &path).header("content-type", "application/json").body(resource.to_string()).send().unwrap()
    }

    /// Sends to a session, which needs no bearer.
    fn send(&self, session: &str, range: &str, bytes: &[u8]) -> Response {
        self.client.put(session).header("content-range", range).body(bytes.to_vec()).send().unwrap()
    }
}

fn header(response: &Response, name: &str) -> String {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

fn hashes(response: &Response) -> String {
    response.headers().get_all("x-goog-hash").iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join(",")
}

fn read_json(response: Response) -> Value {
    serde_json::from_str(&response.text().unwrap()).unwrap()
}

/// Status and `Code` of an answer of the XML API.
fn xml_error(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let text = response.text().unwrap();
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code.to_owned());
    (status, code.unwrap_or(text))
}

/// Status and `reason` of an answer of the JSON API.
fn json_error(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body = read_json(response);
    assert_eq!(body["error"]["code"], status);
    (status, body["error"]["errors"][0]["reason"].as_str().unwrap().to_owned())
}

/// The contents of every element `tag`.
fn elements(text: &str, tag: &str) -> Vec<String> {
    text.split(&format!("<{tag}>")).skip(1).map(|rest| rest.split(&format!("</{tag}>")).next().unwrap().to_owned()).collect()
}

fn crc32c(bytes: &[u8]) -> String {
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    BASE64_STANDARD.encode(u32::try_from(sum).unwrap().to_be_bytes())
}

fn md5(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(Md5::digest(bytes))
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

// Who asks.

#[test]
fn a_signed_assertion_is_exchanged_for_a_token() {
    let bench = Bench::new();
    let key: Value = serde_json::from_str(&bench.double.key_json("owner")).unwrap();
    assert_eq!(key["type"], "service_account");
    assert!(key.get("gcs_base_url").is_none());
    let token_uri = key["token_uri"].as_str().unwrap();
    let exchange = |changes: Value, grant: &str| {
        let mut claims = json!({ "iss": key["client_email"], "scope": SCOPE, "aud": token_uri, "iat": now(), "exp": now() + 3600 });
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let form = format!("grant_type={grant}&assertion={}", bench.double.sign("owner", &claims));
        bench.client.post(token_uri).header("content-type", "application/x-www-form-urlencoded").body(form).send().unwrap()
    };
    let grant = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer";
    let answer = read_json(exchange(json!({}), grant));
    assert_eq!((&answer["token_type"], &answer["expires_in"]), (&json!("Bearer"), &json!(3599)));
    let listing = bench.plain(Method::GET, "/bucket?list-type=2").bearer_auth(answer["access_token"].as_str().unwrap()).send().unwrap();
    assert_eq!(listing.status(), 200);

    let writer = bench.double.email("writer").to_owned();
    for (changes, error) in [
        (json!({ "aud": "https://example.org/token" }), "invalid_grant"),
        (json!({ "iat": now() - 7200, "exp": now() - 3600 }), "invalid_grant"),
        (json!({ "exp": now() + 7200 }), "invalid_grant"),
        (json!({ "iss": "nobody@example.org" }), "invalid_grant"),
        // Signed by the owner, in the name of the writer.
        (json!({ "iss": writer }), "invalid_grant"),
        (json!({ "scope": "https://www.googleapis.com/auth/drive" }), "invalid_scope"),
    ] {
        let answer = exchange(changes.clone(), grant);
        assert_eq!(answer.status(), 400, "{changes}");
        assert_eq!(read_json(answer)["error"], error, "{changes}");
    }
    assert_eq!(read_json(exchange(json!({}), "password"))["error"], "unsupported_grant_type");
}

#[test]
fn a_request_without_a_good_bearer_is_refused() {
    let bench = Bench::new();
    let xml = |token: Option<&str>| {
        let request = bench.plain(Method::GET, "/bucket/a");
        xml_error(token.map_or(request.try_clone().unwrap(), |token| request.bearer_auth(token)).send().unwrap())
    };
    assert_eq!(xml(None), (401, "AuthenticationRequired".into()));
    assert_eq!(xml(Some("ya29.guessed")), (401, "AuthenticationRequired".into()));
    assert_eq!(xml(Some(&bench.token)), (404, "NoSuchKey".into()));
    bench.double.expire_tokens();
    assert_eq!(xml(Some(&bench.token)), (401, "AuthenticationRequired".into()));

    let path = "/storage/v1/b/bucket/o";
    assert_eq!(json_error(bench.plain(Method::GET, path).send().unwrap()), (401, "required".into()));
    assert_eq!(json_error(bench.get(path)), (401, "authError".into()));
}

#[test]
fn a_token_expires() {
    let bench = Bench::with(Options { token_lifetime: Duration::from_secs(1), ..Options::default() });
    assert_eq!(bench.get("/bucket").status(), 200);
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(bench.get("/bucket").status(), 401);
}

#[test]
fn a_self_signed_token_is_a_bearer() {
    let bench = Bench::new();
    let email = bench.double.email("owner").to_owned();
    let list = |changes: Value, method: Method| {
        let mut claims = json!({ "iss": email, "sub": email, "iat": now(), "exp": now() + 3600 });
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        bench.plain(method, "/bucket/a").bearer_auth(bench.double.sign("owner", &claims)).body("a").send().unwrap().status().as_u16()
    };
    assert_eq!(list(json!({ "scope": SCOPE }), Method::PUT), 200);
    assert_eq!(list(json!({ "aud": "https://storage.googleapis.com/" }), Method::GET), 200);
    assert_eq!(list(json!({ "scope": "https://www.googleapis.com/auth/devstorage.read_only" }), Method::GET), 200);
    assert_eq!(list(json!({ "scope": "https://www.googleapis.com/auth/devstorage.read_only" }), Method::PUT), 403);
    for bad in [
        json!({}),
        json!({ "aud": "https://example.org/" }),
        json!({ "scope": SCOPE, "sub": "somebody@example.org" }),
        json!({ "scope": SCOPE, "exp": now() - 1 }),
        json!({ "scope": "https://www.googleapis.com/auth/drive" }),
    ] {
        assert_eq!(list(bad.clone(), Method::GET), 401, "{bad}");
    }
}

#[test]
fn each_right_is_asked_for() {
    let mut bench = Bench::new();
    bench.double.plant("there", b"x", Description::default());
    let ask = |bench: &Bench, method: Method, path: &str| xml_error(bench.call(method, path).body("y").send().unwrap());
    let denied = (403, "AccessDenied".to_owned());
    for (permissions, get, missing, list, create) in [
        (Permissions { get: true, ..Permissions::NONE }, 200, 403, 403, 403),
        (Permissions { get: true, list: true, ..Permissions::NONE }, 200, 404, 200, 403),
        (Permissions { list: true, ..Permissions::NONE }, 403, 403, 200, 403),
        (Permissions { create: true, ..Permissions::NONE }, 403, 403, 403, 200),
    ] {
        bench.double.set_permissions("owner", permissions);
        assert_eq!(ask(&bench, Method::GET, "/bucket/there").0, get, "{permissions:?}");
        assert_eq!(bench.call(Method::HEAD, "/bucket/there").send().unwrap().status(), get, "{permissions:?}");
        assert_eq!(ask(&bench, Method::GET, "/bucket/missing").0, missing, "{permissions:?}");
        assert_eq!(ask(&bench, Method::GET, "/bucket?list-type=2").0, list, "{permissions:?}");
        assert_eq!(ask(&bench, Method::PUT, "/bucket/new").0, create, "{permissions:?}");
        assert_eq!(ask(&bench, Method::DELETE, "/bucket/there"), denied, "{permissions:?}");
        assert_eq!(json_error(bench.get("/storage/v1/b/bucket")), (403, "forbidden".into()));
        bench.double.remove("new");
    }
    bench = bench.speak_as("writer");
    let text = bench.put("there", "y").send().unwrap().text().unwrap();
    let said = "writer@immich-backup.iam.gserviceaccount.com does not have storage.objects.delete access to the Google Cloud Storage object.";
    assert!(text.contains(said), "{text}");
}

// One object.

#[test]
fn an_object_is_created_once() {
    let bench = Bench::new();
    let create = |bench: &Bench| bench.put("a", "one").header("x-goog-if-generation-match", "0").send().unwrap();
    let first = create(&bench);
    assert_eq!(first.status(), 200);
    let generation = bench.double.object("a").unwrap().generation.to_string();
    assert_eq!(header(&first, "x-goog-generation"), generation);
    assert_eq!(header(&first, "x-goog-metageneration"), "1");
    assert_eq!(header(&first, "x-goog-stored-content-length"), "3");
    assert_eq!(xml_error(create(&bench)), (412, "PreconditionFailed".into()));
    let media = |bench: &Bench| {
        let path = "/upload/storage/v1/b/bucket/o?uploadType=media&name=a&ifGenerationMatch=0";
        json_error(bench.call(Method::POST, path).body("two").send().unwrap())
    };
    assert_eq!(media(&bench), (412, "conditionNotMet".into()));
    assert_eq!(json_error(bench.begin_raw("name=a&ifGenerationMatch=0", &json!({}))), (412, "conditionNotMet".into()));

    // One that may not delete may not overwrite, and hears nothing of the condition.
    let bench = bench.speak_as("writer");
    assert_eq!(xml_error(create(&bench)), (403, "AccessDenied".into()));
    assert_eq!(media(&bench), (403, "forbidden".into()));
    assert_eq!(json_error(bench.begin_raw("name=a&ifGenerationMatch=0", &json!({}))), (403, "forbidden".into()));
    assert_eq!(bench.double.versions("a"), 1);
    assert_eq!(bench.double.content("a").unwrap(), b"one");
    assert_eq!(bench.put("b", "new").header("x-goog-if-generation-match", "0").send().unwrap().status(), 200);
}

#[test]
fn an_unconditional_put_overwrites_for_those_who_may_delete() {
    let bench = Bench::new();
    bench.put("a", "one").send().unwrap();
    let before = bench.double.object("a").unwrap().generation;
    assert_eq!(bench.put("a", "two").send().unwrap().status(), 200);
    assert_eq!(bench.double.versions("a"), 2);
    let now = bench.double.object("a").unwrap().generation;
    assert!(now > before);
    assert_eq!(bench.put("a", "three").header("x-goog-if-generation-match", before.to_string()).send().unwrap().status(), 412);
    assert_eq!(bench.put("a", "three").header("x-goog-if-generation-match", now.to_string()).send().unwrap().status(), 200);
    assert_eq!(bench.put("a", "four").header("x-goog-if-generation-match", "none").send().unwrap().status(), 400);
    let bench = bench.speak_as("writer");
    assert_eq!(xml_error(bench.put("a", "five").send().unwrap()), (403, "AccessDenied".into()));
    assert_eq!(bench.double.content("a").unwrap(), b"three");
    assert_eq!(bench.double.history("a").iter().map(|info| info.size_bytes).collect::<Vec<_>>(), [3, 3, 5]);
}

#[test]
fn of_many_who_create_one_succeeds() {
    let bench = Bench::new();
    let put = || bench.put("a", noise(100 * KIB)).header("x-goog-if-generation-match", "0").send().unwrap().status().as_u16();
    let mut answers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..12).map(|_| scope.spawn(put)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    answers.sort_unstable();
    assert_eq!(answers[0], 200);
    assert!(answers[1..].iter().all(|status| *status == 412), "{answers:?}");
    assert_eq!(bench.double.versions("a"), 1);
}

#[test]
fn a_put_with_a_wrong_checksum_makes_no_object() {
    let bench = Bench::new();
    let bytes = noise(70 * KIB);
    let (crc, sum) = (crc32c(&bytes), md5(&bytes));
    let put = |name: &str, value: &str| xml_error(bench.put("a", bytes.clone()).header(name, value).send().unwrap());
    for (name, value) in [
        ("x-goog-hash", format!("crc32c={}", crc32c(b"other"))),
        ("x-goog-hash", format!("md5={}", md5(b"other"))),
        ("x-goog-hash", format!("crc32c={crc},md5={}", md5(b"other"))),
        ("content-md5", md5(b"other")),
    ] {
        assert_eq!(put(name, &value), (400, "BadDigest".into()), "{value}");
    }
    for (name, value) in [("x-goog-hash", "crc32c=abc"), ("x-goog-hash", "sha256=AAAA"), ("content-md5", "AAAA")] {
        assert_eq!(put(name, value), (400, "InvalidDigest".into()), "{value}");
    }
    assert_eq!(bench.double.versions("a"), 0);
    assert_eq!(put("x-goog-hash", &format!("crc32c={crc},md5={sum}")).0, 200);
    let response = bench.get("/bucket/a");
    assert_eq!(hashes(&response), format!("crc32c={crc},md5={sum}"));
    assert_eq!(header(&response, "etag"), format!("\"{}\"", hex::encode(BASE64_STANDARD.decode(&sum).unwrap())));
    assert_eq!(response.bytes().unwrap(), bytes);
}

#[test]
fn class_and_metadata_come_back() {
    let bench = Bench::new();
    let put = bench.put("p/ä%20b", "hello").header("x-goog-storage-class", "COLDLINE").header("x-goog-meta-sha1", "abc").header("content-type", "image/heic");
    assert_eq!(put.header("cache-control", "no-store").send().unwrap().status(), 200);
    for method in [Method::GET, Method::HEAD] {
        let response = bench.call(method, "/bucket/p%2F%C3%A4%20b").send().unwrap();
        assert_eq!(response.status(), 200);
        for (name, value) in [
            ("x-goog-storage-class", "COLDLINE"),
            ("x-goog-meta-sha1", "abc"),
            ("content-type", "image/heic"),
            ("cache-control", "no-store"),
            ("content-length", "5"),
            ("accept-ranges", "bytes"),
        ] {
            assert_eq!(header(&response, name), value, "{name}");
        }
        assert!(header(&response, "last-modified").ends_with(" GMT"));
    }
    let resource = bench.json("/storage/v1/b/bucket/o/p%2F%C3%A4%20b");
    assert_eq!(resource["name"], "p/ä b");
    assert_eq!((&resource["storageClass"], &resource["metadata"]["sha1"]), (&json!("COLDLINE"), &json!("abc")));
    assert_eq!((&resource["contentType"], &resource["size"]), (&json!("image/heic"), &json!("5")));
    let info = bench.double.object("p/ä b").unwrap();
    assert_eq!((info.description.storage_class.as_str(), info.description.metadata["sha1"].as_str()), ("COLDLINE", "abc"));
}

#[test]
fn a_range_is_a_part() {
    let bench = Bench::new();
    let bytes = noise(600 * KIB);
    bench.put("a", bytes.clone()).send().unwrap();
    let range = |range: &str| bench.call(Method::GET, "/bucket/a").header("range", range).send().unwrap();
    for (asked, from, to) in [("bytes=0-0", 0, 1), ("bytes=5-300000", 5, 300_001), ("bytes=614000-", 614_000, 614_400), ("bytes=-7", 614_393, 614_400)] {
        let response = range(asked);
        assert_eq!(response.status(), 206, "{asked}");
        assert_eq!(header(&response, "content-range"), format!("bytes {from}-{}/614400", to - 1));
        // The checksum is that of the whole, so nobody can check a part by it.
        assert!(hashes(&response).contains(&crc32c(&bytes)));
        assert_eq!(response.bytes().unwrap(), bytes[from..to], "{asked}");
    }
    assert_eq!(xml_error(range("bytes=614400-")), (416, "InvalidRange".into()));
    assert_eq!(range("lines=1-2").status(), 200);
    bench.put("empty", "").send().unwrap();
    assert_eq!(bench.call(Method::GET, "/bucket/empty").header("range", "bytes=0-").send().unwrap().status(), 416);
}

#[test]
fn a_conditional_read_says_whether_there_is_something_new() {
    let bench = Bench::new();
    bench.put("a", "one").send().unwrap();
    let etag = header(&bench.get("/bucket/a"), "etag");
    let read = |name: &str, value: &str| bench.call(Method::GET, "/bucket/a").header(name, value).send().unwrap().status().as_u16();
    assert_eq!((read("if-none-match", &etag), read("if-none-match", "\"x\"")), (304, 200));
    assert_eq!((read("if-match", &etag), read("if-match", "\"x\"")), (200, 412));
    assert_eq!((read("if-modified-since", "Fri, 01 Jan 2100 00:00:00 GMT"), read("if-unmodified-since", "Fri, 01 Jan 2010 00:00:00 GMT")), (304, 412));
    let generation = bench.double.object("a").unwrap().generation;
    assert_eq!(bench.get(&format!("/bucket/a?generation={generation}")).status(), 200);
    assert_eq!(bench.get("/bucket/a?generation=1").status(), 404);
    assert_eq!(bench.get(&format!("/storage/v1/b/bucket/o/a?ifGenerationNotMatch={generation}")).status(), 304);
}

#[test]
fn what_is_deleted_is_gone_and_may_be_made_again() {
    let bench = Bench::new();
    bench.put("a", "one").send().unwrap();
    assert_eq!(bench.call(Method::DELETE, "/bucket/a").send().unwrap().status(), 204);
    assert_eq!(xml_error(bench.call(Method::DELETE, "/bucket/a").send().unwrap()), (404, "NoSuchKey".into()));
    assert_eq!(xml_error(bench.get("/bucket/a")), (404, "NoSuchKey".into()));
    assert_eq!(bench.put("a", "two").header("x-goog-if-generation-match", "0").send().unwrap().status(), 200);
    assert_eq!(bench.double.versions("a"), 2);
    assert_eq!(bench.call(Method::DELETE, "/storage/v1/b/bucket/o/a?ifGenerationMatch=1").send().unwrap().status(), 412);
    assert_eq!(bench.call(Method::DELETE, "/storage/v1/b/bucket/o/a").send().unwrap().status(), 204);
    assert_eq!(json_error(bench.get("/storage/v1/b/bucket/o/a")), (404, "notFound".into()));
    assert_eq!(xml_error(bench.get("/other/a")), (404, "NoSuchBucket".into()));
}

#[test]
fn impossible_names_and_classes_are_refused() {
    let bench = Bench::new();
    let put = |key: &str| xml_error(bench.put(key, "x").send().unwrap());
    assert_eq!(put(&"n".repeat(1024)).0, 200);
    assert_eq!(put(&"n".repeat(1025)), (400, "KeyTooLong".into()));
    assert_eq!(put("a%0Ab"), (400, "InvalidObjectName".into()));
    assert_eq!(put("a%0Db"), (400, "InvalidObjectName".into()));
    assert_eq!(put("a%FFb"), (400, "InvalidURI".into()));
    assert_eq!(put("a//b").0, 200);
    assert_eq!(bench.double.keys().first().map(String::as_str), Some("a//b"));
    for name in [".", ".."] {
        assert_eq!(json_error(bench.begin_raw("", &json!({ "name": name }))), (400, "invalid".into()), "{name}");
    }
    assert_eq!(xml_error(bench.put("c", "x").header("x-goog-storage-class", "GLACIER").send().unwrap()), (400, "InvalidStorageClass".into()));
    assert_eq!(json_error(bench.begin_raw("name=c", &json!({ "storageClass": "GLACIER" }))), (400, "invalid".into()));
    assert_eq!(xml_error(bench.put("c", "x").header("x-goog-meta-long", "m".repeat(9000)).send().unwrap()), (400, "MetadataTooLarge".into()));
    assert_eq!(bench.double.versions("c"), 0);
}

// Many objects.

#[test]
fn a_listing_comes_in_pages_in_the_order_of_bytes() {
    let bench = Bench::with(Options { page_max: 3, ..Options::default() });
    let mut names = ["B", "a", "a/1", "a/2", "a0", "z&<", "ä", "\u{10000}"];
    for name in names {
        bench.double.plant(name, name.as_bytes(), Description::default());
    }
    names.sort_unstable();
    let escaped = |name: &str| name.replace('&', "&amp;").replace('<', "&lt;");
    let all = |extra: &str| {
        let (mut found, mut token, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let text = bench.get(&format!("/bucket?list-type=2{extra}{token}")).text().unwrap();
            found.extend(elements(&text, "Key"));
            pages += 1;
            assert_eq!(elements(&text, "KeyCount"), [elements(&text, "Key").len().to_string()]);
            let next = elements(&text, "NextContinuationToken");
            assert_eq!(elements(&text, "IsTruncated"), [(!next.is_empty()).to_string()]);
            match next.first() {
                Some(next) => token = format!("&continuation-token={next}"),
                None => return (found, pages),
            }
        }
    };
    assert_eq!(all(""), (names.map(escaped).to_vec(), 3));
    assert_eq!(all("&prefix=a"), (vec!["a".into(), "a/1".into(), "a/2".into(), "a0".into()], 2));
    assert_eq!(all("&start-after=a/1").0, names[3..].iter().map(|name| escaped(name)).collect::<Vec<_>>());
    assert_eq!(all("&start-after=a/10&prefix=a/").0, ["a/2"]);
    assert_eq!(all("&max-keys=1").1, 8);
    assert_eq!(all("&max-keys=5000").1, 3);
    let text = bench.get("/bucket?list-type=2&prefix=z&encoding-type=url").text().unwrap();
    assert_eq!((elements(&text, "Key"), elements(&text, "EncodingType")), (vec!["z%26%3C".into()], vec!["url".into()]));
    let entry = bench.double.object("z&<").unwrap();
    assert_eq!((elements(&text, "Size"), elements(&text, "Generation")), (vec!["3".to_owned()], vec![entry.generation.to_string()]));
    assert_eq!(elements(&text, "ETag"), [format!("&quot;{}&quot;", hex::encode(entry.checksums.md5.unwrap()))]);

    // The first version goes on from a marker.
    let text = bench.get("/bucket").text().unwrap();
    assert_eq!((elements(&text, "Key"), elements(&text, "NextMarker")), (vec!["B".into(), "a".into(), "a/1".into()], vec!["a/1".to_owned()]));
    assert_eq!(elements(&bench.get("/bucket?marker=a/1").text().unwrap(), "Key"), ["a/2", "a0", "z&amp;&lt;"]);
    for bad in ["max-keys=x", "list-type=3", "continuation-token=!&list-type=2"] {
        assert_eq!(xml_error(bench.get(&format!("/bucket?{bad}"))), (400, "InvalidArgument".into()), "{bad}");
    }
}

#[test]
fn a_page_has_a_thousand_entries_at_most() {
    let bench = Bench::new();
    for number in 0..1001 {
        bench.double.plant(&format!("{number:04}"), b"", Description::default());
    }
    let text = bench.get("/bucket?list-type=2&max-keys=2000").text().unwrap();
    assert_eq!((elements(&text, "Key").len(), elements(&text, "IsTruncated")), (1000, vec!["true".to_owned()]));
    assert_eq!(bench.json("/storage/v1/b/bucket/o?maxResults=2000")["items"].as_array().unwrap().len(), 1000);
}

#[test]
fn a_delimiter_folds_names_into_prefixes() {
    let bench = Bench::new();
    for name in ["a/1", "a/2", "a/b/3", "b", "c/4"] {
        bench.double.plant(name, b"", Description::default());
    }
    let list = |query: &str| {
        let text = bench.get(&format!("/bucket?list-type=2&delimiter=/{query}")).text().unwrap();
        let prefixes: Vec<_> = elements(&text, "CommonPrefixes").iter().flat_map(|inner| elements(inner, "Prefix")).collect();
        (elements(&text, "Key").join(" "), prefixes.join(" "), elements(&text, "NextContinuationToken").join(" "))
    };
    assert_eq!(list(""), ("b".into(), "a/ c/".into(), String::new()));
    assert_eq!(list("&prefix=a/"), ("a/1 a/2".into(), "a/b/".into(), String::new()));
    // A prefix is an entry like a name: pages are counted by both, and none comes twice.
    let (keys, prefixes, token) = list("&max-keys=1");
    assert_eq!((keys.as_str(), prefixes.as_str()), ("", "a/"));
    let (keys, prefixes, token) = list(&format!("&max-keys=1&continuation-token={token}"));
    assert_eq!((keys.as_str(), prefixes.as_str()), ("b", ""));
    assert_eq!(list(&format!("&max-keys=1&continuation-token={token}")), (String::new(), "c/".into(), String::new()));
}

#[test]
fn the_json_api_lists_too() {
    let bench = Bench::with(Options { page_max: 2, ..Options::default() });
    for name in ["a/1", "a/2", "b", "c"] {
        bench.double.plant(name, b"x", Description::default());
    }
    let names = |page: &Value| page["items"].as_array().map(|items| items.iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>());
    let page = bench.json("/storage/v1/b/bucket/o");
    assert_eq!(names(&page).unwrap(), ["a/1", "a/2"]);
    let page = bench.json(&format!("/storage/v1/b/bucket/o?pageToken={}", page["nextPageToken"].as_str().unwrap()));
    assert_eq!(names(&page).unwrap(), ["b", "c"]);
    assert!(page.get("nextPageToken").is_none());
    let page = bench.json("/storage/v1/b/bucket/o?delimiter=/&maxResults=5");
    assert_eq!((names(&page).unwrap(), &page["prefixes"]), (vec!["b".to_owned()], &json!(["a/"])));
    // startOffset is where it begins, start-after is not.
    assert_eq!(names(&bench.json("/storage/v1/b/bucket/o?startOffset=a/2&endOffset=c")).unwrap(), ["a/2", "b"]);
    assert_eq!(names(&bench.json("/storage/v1/b/bucket/o?prefix=none")), None);
    assert_eq!(bench.json("/storage/v1/b/bucket")["storageClass"], "STANDARD");
    assert_eq!(json_error(bench.get("/storage/v1/b/other")), (404, "notFound".into()));
}

// Uploads of the JSON API.

#[test]
fn simple_uploads_of_the_json_api_make_objects() {
    let bench = Bench::new();
    let path = "/upload/storage/v1/b/bucket/o?uploadType=media&name=dir%2Fa&ifGenerationMatch=0";
    let resource = read_json(bench.call(Method::POST, path).header("content-type", "text/plain").body("media").send().unwrap());
    assert_eq!((&resource["name"], &resource["contentType"], &resource["size"]), (&json!("dir/a"), &json!("text/plain"), &json!("5")));
    assert_eq!(resource["generation"], bench.double.object("dir/a").unwrap().generation.to_string());

    let content = [b"first line\r\n--ed", noise(300 * KIB).as_slice(), b"\r\n--edg"].concat();
    let upload = |metadata: &Value| {
        let head = format!("--edge\r\nContent-Type: application/json\r\n\r\n{metadata}\r\n--edge\r\nContent-Type: image/png\r\n\r\n");
        let body = [head.as_bytes(), &content, b"\r\n--edge--\r\n"].concat();
        let request = bench.call(Method::POST, "/upload/storage/v1/b/bucket/o?uploadType=multipart");
        request.header("content-type", "multipart/related; boundary=\"edge\"").body(body).send().unwrap()
    };
    assert_eq!(json_error(upload(&json!({ "name": "b", "crc32c": crc32c(b"other") }))), (400, "invalid".into()));
    assert_eq!(json_error(upload(&json!({ "name": "b", "md5Hash": md5(b"other") }))), (400, "invalid".into()));
    assert_eq!(bench.double.versions("b"), 0);
    let metadata = json!({ "name": "b", "crc32c": crc32c(&content), "md5Hash": md5(&content), "storageClass": "ARCHIVE", "metadata": { "k": "v" } });
    let resource = read_json(upload(&metadata));
    assert_eq!((&resource["crc32c"], &resource["md5Hash"]), (&metadata["crc32c"], &metadata["md5Hash"]));
    assert_eq!((&resource["storageClass"], &resource["metadata"]["k"], &resource["contentType"]), (&json!("ARCHIVE"), &json!("v"), &json!("image/png")));
    assert_eq!(bench.get("/storage/v1/b/bucket/o/b?alt=media").bytes().unwrap(), content);
    let part = bench.call(Method::GET, "/download/storage/v1/b/bucket/o/b?alt=media").header("range", "bytes=0-4").send().unwrap();
    assert_eq!((part.status().as_u16(), part.bytes().unwrap().as_ref()), (206, b"first".as_slice()));
    assert_eq!(json_error(bench.get("/storage/v1/b/bucket/o/dir/a")), (404, "notFound".into()));
    assert_eq!(json_error(bench.call(Method::POST, "/upload/storage/v1/b/bucket/o?name=c").body("c").send().unwrap()), (400, "invalid".into()));
}

#[test]
fn a_resumable_upload_goes_in_chunks() {
    let bench = Bench::new();
    let bytes = noise(3 * CHUNK + 1000);
    let session = bench.begin("name=big%2Fone&ifGenerationMatch=0", &json!({ "storageClass": "NEARLINE", "metadata": { "k": "v" } }));
    let status = bench.send(&session, "bytes */*", b"");
    assert_eq!((status.status().as_u16(), header(&status, "range")), (308, String::new()));
    assert_eq!(bench.double.unfinished_uploads(), ["big/one"]);

    let answer = bench.send(&session, &format!("bytes 0-{}/*", CHUNK - 1), &bytes[..CHUNK]);
    assert_eq!((answer.status().as_u16(), header(&answer, "range")), (308, "bytes=0-262143".into()));
    // A chunk that is no multiple is cut off at one.
    let answer = bench.send(&session, &format!("bytes {CHUNK}-{}/*", 2 * CHUNK + 499), &bytes[CHUNK..2 * CHUNK + 500]);
    assert_eq!((answer.status().as_u16(), header(&answer, "range")), (308, "bytes=0-524287".into()));
    // What is there already is passed over.
    let answer = bench.send(&session, &format!("bytes 0-{}/{}", 3 * CHUNK - 1, bytes.len()), &bytes[..3 * CHUNK]);
    assert_eq!((answer.status().as_u16(), header(&answer, "range")), (308, "bytes=0-786431".into()));
    assert_eq!(header(&bench.send(&session, &format!("bytes */{}", bytes.len()), b""), "range"), "bytes=0-786431");
    assert!(bench.double.object("big/one").is_none());
    // For clients that would take 308 for a redirection.
    let hidden = bench.client.post(&session).header("x-guploader-no-308", "yes").header("content-range", "bytes */*").body("").send().unwrap();
    assert_eq!((hidden.status().as_u16(), header(&hidden, "x-http-status-code-override")), (200, "308".into()));

    let last = bench.send(&session, &format!("bytes {}-{}/{}", 3 * CHUNK, bytes.len() - 1, bytes.len()), &bytes[3 * CHUNK..]);
    assert_eq!(last.status(), 200);
    let resource = read_json(last);
    assert_eq!((&resource["name"], &resource["size"]), (&json!("big/one"), &json!(bytes.len().to_string())));
    assert_eq!((&resource["crc32c"], &resource["md5Hash"]), (&json!(crc32c(&bytes)), &json!(md5(&bytes))));
    assert_eq!((&resource["storageClass"], &resource["metadata"]["k"]), (&json!("NEARLINE"), &json!("v")));
    assert_eq!(bench.get("/bucket/big/one").bytes().unwrap(), bytes);
    // Once more, after an answer that was lost.
    let again = bench.send(&session, &format!("bytes */{}", bytes.len()), b"");
    assert_eq!((again.status().as_u16(), read_json(again)["generation"].clone()), (200, resource["generation"].clone()));
    assert_eq!(bench.double.versions("big/one"), 1);
    assert!(bench.double.unfinished_uploads().is_empty());
}

#[test]
fn a_resumable_upload_goes_in_one_request_or_with_an_unknown_end() {
    let bench = Bench::new();
    let bytes = noise(CHUNK + 5);
    let session = bench.begin("name=one", &json!({}));
    assert_eq!(bench.client.put(&session).body(bytes.clone()).send().unwrap().status(), 200);
    assert_eq!(bench.double.content("one").unwrap(), bytes);

    // The name may stand in the resource, the length in a header; a chunk that reaches it is the last.
    let path = "/upload/storage/v1/b/bucket/o?uploadType=resumable";
    let begun = bench.call(Method::POST, path).header("x-upload-content-length", bytes.len()).header("x-upload-content-type", "image/png");
    let session = header(&begun.body(r#"{"name":"two"}"#).send().unwrap(), "location");
    assert_eq!(bench.send(&session, &format!("bytes 0-{}/*", bytes.len() - 1), &bytes).status(), 200);
    assert_eq!(bench.double.object("two").unwrap().description.content_type, "image/png");

    // An end that is known only once everything was sent.
    let session = bench.begin("name=three", &json!({}));
    assert_eq!(bench.send(&session, &format!("bytes 0-{}/*", CHUNK - 1), &bytes[..CHUNK]).status(), 308);
    assert_eq!(bench.send(&session, &format!("bytes */{CHUNK}"), b"").status(), 200);
    assert_eq!(bench.double.object("three").unwrap().size_bytes, CHUNK as u64);

    let session = bench.begin("name=empty", &json!({}));
    assert_eq!(bench.send(&session, "bytes */*", b"").status(), 308);
    assert_eq!(bench.send(&session, "bytes */0", b"").status(), 200);
    assert_eq!(bench.double.object("empty").unwrap().size_bytes, 0);
}

#[test]
fn a_chunk_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    let bytes = noise(2 * CHUNK);
    let session = bench.begin("name=a", &json!({}));
    let send = |range: &str, bytes: &[u8]| {
        let response = bench.send(&session, range, bytes);
        (response.status().as_u16(), response.text().unwrap())
    };
    let (status, text) = send("bytes 0-999/*", &bytes[..1000]);
    assert_eq!(status, 400);
    assert!(text.contains("equal or greater than 262144, except for the final request") && text.contains("contained 1000 bytes"), "{text}");
    let (status, text) = send("bytes 262144-524287/*", &bytes[CHUNK..]);
    assert_eq!(status, 503);
    assert!(text.contains("the upload offset is 262144 byte(s), which exceeds already uploaded size of 0 byte(s)"), "{text}");
    let (status, text) = send("bytes 0-262143/*", &bytes[..CHUNK - 1]);
    assert_eq!(status, 400);
    assert!(text.contains("There were 262143 byte(s) in the request body.  There should have been 262144 byte(s)"), "{text}");
    for range in ["bytes 5-4/*", "bytes 0-10/5", "parts 1-2/3", "bytes 0-262143"] {
        assert_eq!(send(range, &bytes[..CHUNK]).0, 400, "{range}");
    }
    assert_eq!(send("bytes 0-262143/524288", &bytes[..CHUNK]).0, 308);
    assert_eq!(send("bytes 262144-524286/524287", &bytes[CHUNK..2 * CHUNK - 1]).0, 400, "another length than before");
    assert_eq!(send("bytes 262144-524287/524288", &bytes[CHUNK..]).0, 200);
}

#[test]
fn a_resumable_upload_goes_on_after_a_broken_connection() {
    let bench = Bench::new();
    let bytes = noise(5 * CHUNK + 77);
    let session = bench.begin("name=a&ifGenerationMatch=0", &json!({ "crc32c": crc32c(&bytes) }));
    let sent = 2 * CHUNK + 1000;
    let (host, path) = session.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    write!(
        stream,
        "PUT /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\nContent-Range: bytes 0-{}/{}\r\n\r\n",
        bytes.len(),
        bytes.len() - 1,
        bytes.len()
    )
    .unwrap();
    stream.write_all(&bytes[..sent]).unwrap();
    drop(stream);

    // The server may notice a moment later.
    let began = Instant::now();
    let range = loop {
        let answer = bench.send(&session, "bytes */*", b"");
        assert_eq!(answer.status(), 308);
        let range = header(&answer, "range");
        if range == "bytes=0-524287" || began.elapsed() > Duration::from_secs(5) {
            break range;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(range, "bytes=0-524287");
    assert!(bench.double.object("a").is_none());
    let rest = format!("bytes {}-{}/{}", 2 * CHUNK, bytes.len() - 1, bytes.len());
    assert_eq!(bench.send(&session, &rest, &bytes[2 * CHUNK..]).status(), 200);
    assert_eq!(bench.double.content("a").unwrap(), bytes);
}

#[test]
fn a_request_that_hangs_does_not_stop_a_newer_one() {
    let bench = Bench::new();
    let bytes = noise(2 * CHUNK);
    let session = bench.begin("name=a", &json!({}));
    let (host, path) = session.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    write!(stream, "PUT /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", bytes.len()).unwrap();
    stream.write_all(&bytes[..CHUNK + 5]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(header(&bench.send(&session, "bytes */*", b""), "range"), "bytes=0-262143");
    let rest = format!("bytes {CHUNK}-{}/{}", bytes.len() - 1, bytes.len());
    assert_eq!(bench.send(&session, &rest, &bytes[CHUNK..]).status(), 200);
    // What the old one still brings changes nothing.
    drop(stream.write_all(&vec![0; CHUNK - 5]));
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    drop(stream.read_to_end(&mut answer));
    assert_eq!(bench.double.content("a").unwrap(), bytes);
    assert_eq!(bench.double.versions("a"), 1);
}

#[test]
fn a_put_that_breaks_off_makes_no_object() {
    let bench = Bench::new();
    let host = bench.double.url().strip_prefix("http://").unwrap().to_owned();
    let mut stream = TcpStream::connect(&host).unwrap();
    write!(stream, "PUT /bucket/a HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\nContent-Length: 1000\r\n\r\nshort", bench.token).unwrap();
    drop(stream);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(bench.double.versions("a"), 0);
    // Without a length and without chunks there is nothing to tell an end by.
    let mut stream = TcpStream::connect(&host).unwrap();
    write!(stream, "PUT /bucket/a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n", bench.token).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 411 "), "{answer}");
}

#[test]
fn a_resumable_upload_with_a_wrong_checksum_makes_no_object() {
    let bench = Bench::new();
    let bytes = noise(CHUNK + 9);
    let whole = format!("bytes 0-{}/{}", bytes.len() - 1, bytes.len());
    for resource in [json!({ "crc32c": crc32c(b"other") }), json!({ "md5Hash": md5(b"other") })] {
        let session = bench.begin("name=a", &resource);
        let response = bench.send(&session, &whole, &bytes);
        assert_eq!(response.status(), 400);
        let message = read_json(response)["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("doesn't match calculated"), "{message}");
        assert_eq!(bench.send(&session, "bytes */*", b"").status(), 400, "the session has come to its end");
    }
    let session = bench.begin("name=a", &json!({}));
    let finish = |hash: String| bench.client.put(&session).header("x-goog-hash", hash).header("content-range", &whole).body(bytes.clone()).send().unwrap();
    assert_eq!(json_error(finish(format!("crc32c={}", crc32c(b"other")))), (400, "invalid".into()));
    assert_eq!(bench.double.versions("a"), 0);
    let session = bench.begin("name=a", &json!({ "crc32c": crc32c(&bytes), "md5Hash": md5(&bytes) }));
    assert_eq!(bench.send(&session, &whole, &bytes).status(), 200);
    assert_eq!(json_error(bench.begin_raw("name=b", &json!({ "crc32c": "short" }))), (400, "invalid".into()));
}

#[test]
fn a_condition_is_asked_again_at_the_end_of_a_resumable_upload() {
    let bench = Bench::new();
    let bytes = noise(10);
    let race = |bench: &Bench, key: &str| {
        let session = bench.begin(&format!("name={key}&ifGenerationMatch=0"), &json!({}));
        bench.double.plant(key, b"faster", Description::default());
        json_error(bench.send(&session, "bytes 0-9/10", &bytes))
    };
    assert_eq!(race(&bench, "a"), (412, "conditionNotMet".into()));
    let bench = bench.speak_as("writer");
    assert_eq!(race(&bench, "b"), (403, "forbidden".into()));
    assert_eq!((bench.double.content("a").unwrap(), bench.double.content("b").unwrap()), (b"faster".to_vec(), b"faster".to_vec()));
}

#[test]
fn a_session_ends_by_cancelling_and_by_age() {
    let bench = Bench::new();
    let session = bench.begin("name=a", &json!({}));
    assert_eq!(bench.client.delete(&session).send().unwrap().status().as_u16(), 499);
    assert!(bench.send(&session, "bytes */*", b"").status().is_client_error());
    assert!(bench.send(&session, "bytes 0-0/1", b"x").status().is_client_error());
    let session = bench.begin("name=a", &json!({}));
    bench.double.expire_sessions();
    assert_eq!(bench.send(&session, "bytes */*", b"").status(), 410);
    let unknown = session.replace("upload_id=", "upload_id=0");
    assert_eq!(bench.send(&unknown, "bytes */*", b"").status(), 404);
    assert_eq!(bench.double.versions("a"), 0);
}

#[test]
fn a_session_is_where_the_request_was_sent_to() {
    let bench = Bench::new();
    let path = "/upload/storage/v1/b/bucket/o?uploadType=resumable&name=a";
    let location = |host: &str| header(&bench.call(Method::POST, path).header("host", host).send().unwrap(), "location");
    assert!(location("127.0.0.1:1234").starts_with("http://127.0.0.1:1234/upload/"));
    // No port, no server: the double names itself.
    assert!(location("127.0.0.1").starts_with(bench.double.url()));
}

// Multipart uploads of the XML API.

#[test]
fn an_xml_multipart_upload_knows_no_condition_and_overwrites() {
    let bench = Bench::new();
    bench.put("a", "old").send().unwrap();
    let initiate = || bench.call(Method::POST, "/bucket/a?uploads");
    let begin = || elements(&initiate().header("x-goog-storage-class", "COLDLINE").send().unwrap().text().unwrap(), "UploadId").remove(0);
    assert_eq!(xml_error(initiate().header("x-goog-if-generation-match", "0").send().unwrap()), (400, "InvalidArgument".into()));
    let id = begin();
    let part = |id: &str, number: u32, bytes: &[u8]| {
        let response =
            bench.put(&format!("a?partNumber={number}&uploadId={id}"), bytes).header("x-goog-hash", format!("crc32c={}", crc32c(bytes))).send().unwrap();
        assert_eq!(response.status(), 200);
        header(&response, "etag")
    };
    let complete = |id: &str, parts: &[(u32, &str)]| {
        let parts: String = parts.iter().map(|(number, etag)| format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")).collect();
        bench.call(Method::POST, &format!("/bucket/a?uploadId={id}")).body(format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"))
    };
    let (first, second) = (noise(5 * 1024 * KIB), noise(1000));
    let (one, two) = (part(&id, 1, &first), part(&id, 2, &second));
    let all = [(1, one.as_str()), (2, two.as_str())];
    assert_eq!(xml_error(complete(&id, &all).header("x-goog-if-generation-match", "0").send().unwrap()), (400, "InvalidArgument".into()));
    assert_eq!(xml_error(complete(&id, &[(2, &two), (1, &one)]).send().unwrap()), (400, "InvalidPartOrder".into()));
    assert_eq!(xml_error(complete(&id, &[(1, &two)]).send().unwrap()), (400, "InvalidPart".into()));
    let response = complete(&id, &all).send().unwrap();
    assert_eq!(response.status(), 200);
    assert!(!header(&response, "x-goog-generation").is_empty());
    assert_eq!(bench.double.versions("a"), 2);
    let bytes = [first, second].concat();
    assert_eq!(bench.double.content("a").unwrap(), bytes);
    let response = bench.get("/bucket/a");
    // No MD5, and a tag that is none.
    assert_eq!(hashes(&response), format!("crc32c={}", crc32c(&bytes)));
    assert!(header(&response, "etag").starts_with("\"-"));
    assert_eq!((header(&response, "x-goog-component-count").as_str(), header(&response, "x-goog-storage-class").as_str()), ("2", "COLDLINE"));

    let id = begin();
    let (one, two) = (part(&id, 1, b"small"), part(&id, 2, b"small"));
    assert_eq!(xml_error(complete(&id, &[(1, &one), (2, &two)]).send().unwrap()), (400, "EntityTooSmall".into()));
    assert_eq!(bench.double.unfinished_uploads(), ["a"]);
    assert_eq!(bench.call(Method::DELETE, &format!("/bucket/a?uploadId={id}")).send().unwrap().status(), 204);
    assert_eq!(xml_error(complete(&id, &[(1, &one)]).send().unwrap()), (404, "NoSuchUpload".into()));
    assert_eq!(xml_error(bench.put(&format!("a?partNumber=0&uploadId={id}"), "x").send().unwrap()), (400, "InvalidArgument".into()));
}

// What a test can see and do.

#[test]
fn a_test_sees_requests_and_changes_objects() {
    let bench = Bench::new().speak_as("writer");
    bench.put("a", "hello").header("x-goog-if-generation-match", "0").send().unwrap();
    bench.plain(Method::GET, "/bucket?list-type=2&prefix=a%2F").send().unwrap();
    let requests = bench.double.requests();
    let seen: Vec<_> = requests.iter().map(|r| (r.method.as_str(), r.path.as_str(), r.query.as_str(), r.status, r.identity.as_deref())).collect();
    assert_eq!(seen, [("PUT", "/bucket/a", "", 200, Some("writer")), ("GET", "/bucket", "list-type=2&prefix=a%2F", 401, None)]);
    bench.double.forget_requests();
    assert!(bench.double.requests().is_empty());

    assert!(bench.double.damage("a", |bytes| bytes[0] ^= 1));
    let response = bench.get("/bucket/a");
    assert_eq!(hashes(&response), format!("crc32c={},md5={}", crc32c(b"hello"), md5(b"hello")));
    assert_eq!(response.bytes().unwrap().as_ref(), b"iello");
    assert!(bench.double.damage("a", |bytes| bytes.truncate(2)));
    assert_eq!(bench.get("/bucket/a").bytes().unwrap().as_ref(), b"ie");
    assert_eq!(bench.double.versions("a"), 1);
    assert!(bench.double.remove("a") && !bench.double.remove("a") && !bench.double.damage("a", |_| ()));
    bench.double.plant("b", b"planted", Description { storage_class: "ARCHIVE".into(), ..Description::default() });
    assert_eq!(header(&bench.get("/bucket/b"), "x-goog-storage-class"), "ARCHIVE");
}

#[test]
fn what_is_not_there_is_said_to_be_missing() {
    let bench = Bench::new();
    for (method, path) in [(Method::GET, "/bucket?uploads"), (Method::GET, "/bucket?acl"), (Method::DELETE, "/bucket"), (Method::POST, "/bucket/a")] {
        assert_eq!(bench.call(method, path).body("").send().unwrap().status(), 501, "{path}");
    }
    let copy = bench.put("b", "").header("x-goog-copy-source", "bucket/a").send().unwrap();
    assert_eq!(xml_error(copy), (501, "NotImplemented".into()));
}

#[test]
fn a_large_upload_is_kept_and_given_back() {
    let bench = Bench::new();
    let bytes = noise(1024 * KIB).repeat(48);
    let session = bench.begin("name=large&ifGenerationMatch=0", &json!({ "crc32c": crc32c(&bytes) }));
    assert_eq!(bench.client.put(&session).body(bytes.clone()).send().unwrap().status(), 200);
    let back = bench.get("/bucket/large").bytes().unwrap();
    assert!(back == bytes);
}

/// The client that the program uses signs its own tokens, and takes the address from the key.
#[tokio::test]
async fn object_store_works_with_it() {
    use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, gcp::GoogleCloudStorageBuilder, path::Path};
    let double = Double::start(Options::default());
    let key = double.key_json_for("owner", double.url());
    let client_options = object_store::ClientOptions::new().with_allow_http(true);
    let store = GoogleCloudStorageBuilder::new().with_bucket_name("bucket").with_service_account_key(key).with_client_options(client_options).build().unwrap();
    let path = Path::parse("dir/ä b+c").unwrap();
    let create = || store.put_opts(&path, "hello".into(), PutOptions::from(PutMode::Create));
    create().await.unwrap();
    assert!(matches!(create().await.unwrap_err(), Error::AlreadyExists { .. }));
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap().as_ref(), b"hello");
    assert_eq!(store.get_range(&path, 1..3).await.unwrap().as_ref(), b"el");
    let listed = store.list_with_delimiter(Some(&Path::from("dir"))).await.unwrap();
    assert_eq!((listed.objects[0].location.clone(), listed.objects[0].size), (path.clone(), 5));
    store.delete(&path).await.unwrap();
    assert!(matches!(store.head(&path).await.unwrap_err(), Error::NotFound { .. }));
}
