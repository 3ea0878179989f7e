//! The proxy fails requests as its rules say, as seen from both its sides.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use immich_backup_testbed::gcs;
use immich_backup_testbed::proxy::{Action, Dialect, Policy, Proxy, Resign, Rule, Upstream};
use immich_backup_testbed::servers::{Azurite, Bucket, Container, Options, S3sFs, SeaweedFs, WireError};

const CREATE: [(&str, &str); 1] = [("if-none-match", "*")];

/// The bucket as seen through the proxy.
fn through(proxy: &Proxy, bucket: &Bucket) -> Bucket {
    Bucket { endpoint: proxy.endpoint(), ..bucket.clone() }
}

/// s3s-fs starts in no time, and keeps what it is sent.
fn small() -> (S3sFs, Proxy, Bucket) {
    let server = S3sFs::start().unwrap();
    let proxy = Proxy::start(server.endpoint()).unwrap();
    let line = through(&proxy, server.bucket());
    (server, proxy, line)
}

fn keys(bucket: &Bucket) -> Vec<String> {
    bucket.keys().unwrap().into_keys().collect()
}

/// Sends a request as it stands here and returns what comes back, and how it ended.
fn raw(proxy: &Proxy, request: &[u8], patience: Duration) -> (Vec<u8>, io::Result<usize>) {
    let mut stream = TcpStream::connect(proxy.endpoint().trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    // A reset may come while this is still writing.
    if let Err(error) = stream.write_all(request) {
        return (Vec::new(), Err(error));
    }
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer);
    (answer, end)
}

fn is_reset(error: &io::Error) -> bool {
    [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe].contains(&error.kind())
}

const PATIENT: Duration = Duration::from_secs(20);
const IMPATIENT: Duration = Duration::from_millis(300);

/// A server that hands each connection to `serve`.
fn stub(serve: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || listener.incoming().for_each(|stream| serve(stream.unwrap())));
    endpoint
}

/// Reads up to the end of a request's head, and returns it.
fn head_of(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn without_rules_all_goes_through_and_signatures_hold() {
    let server = SeaweedFs::start(Options::default()).unwrap();
    let proxy = Proxy::start(server.endpoint()).unwrap();
    let line = through(&proxy, server.bucket());
    let large: Vec<u8> = (0..9_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    line.put_raw("a/ä & b+c (1)%.jpg", b"content").unwrap();
    line.put_raw("empty", b"").unwrap();
    line.put_raw("large", &large).unwrap();
    assert_eq!(line.get("a/ä & b+c (1)%.jpg").unwrap().as_ref(), b"content");
    assert_eq!(line.get("empty").unwrap().len(), 0);
    assert!(line.get("large").unwrap() == large);
    assert_eq!(line.head("large").unwrap()["content-length"], "9000000");
    assert_eq!(line.keys().unwrap(), server.bucket().keys().unwrap());
    line.delete_raw("empty").unwrap();
    assert!(matches!(line.get("empty"), Err(WireError::Refused { status: StatusCode::NOT_FOUND, .. })));

    let log = proxy.log();
    assert_eq!((log[2].method.as_str(), log[2].path.as_str(), log[2].bytes_in), ("PUT", "/test/large", 9_000_000));
    assert_eq!((log[2].answered, log[2].upstream), (Some(StatusCode::OK), Upstream::Answered(StatusCode::OK)));
    assert_eq!(proxy.count(|request| request.has("list-type=2")), 1);
    assert_eq!(proxy.count(|request| request.answered == Some(StatusCode::NOT_FOUND)), 1);
    proxy.clear_log();
    assert_eq!(proxy.count(|_| true), 0);
}

#[test]
fn azure_goes_through_and_its_signatures_hold() {
    let server = Azurite::start().unwrap();
    let proxy = Proxy::start(server.endpoint()).unwrap();
    let line = Container { endpoint: format!("{}/{}", proxy.endpoint(), Azurite::ACCOUNT), ..server.container().clone() };
    line.put_raw("a/ä & b+c", b"content").unwrap();
    assert_eq!(line.get("a/ä & b+c").unwrap().as_ref(), b"content");
    assert_eq!(line.blobs().unwrap().len(), 1);

    proxy.set_policy(Policy::AppendOnly { dialect: Dialect::Azure, abort_allowed: false });
    let block_blob = ("x-ms-blob-type", "BlockBlob");
    assert_eq!(line.send("PUT", "a/ä & b+c", &[], &[block_blob], b"other").unwrap().status(), 403);
    assert_eq!(line.send("DELETE", "a/ä & b+c", &[], &[], b"").unwrap().status(), 403);
    assert_eq!(line.send("PUT", "k", &[], &[block_blob, CREATE[0]], b"first").unwrap().status(), 201);
    assert_eq!(line.send("PUT", "k", &[], &[block_blob, CREATE[0]], b"second").unwrap().status(), 409);
    assert_eq!(line.send("PUT", "p", &[("comp", "block"), ("blockid", "MDAw")], &[], b"block").unwrap().status(), 201);
    let list = b"<BlockList><Latest>MDAw</Latest></BlockList>";
    assert_eq!(line.send("PUT", "p", &[("comp", "blocklist")], &[], list).unwrap().status(), 403);
    assert_eq!(line.send("PUT", "p", &[("comp", "blocklist")], &CREATE, list).unwrap().status(), 201);
    assert_eq!(server.container().get("a/ä & b+c").unwrap().as_ref(), b"content");
    assert_eq!(server.container().get("p").unwrap().as_ref(), b"block");

    proxy.set_policy(Policy::Everything);
    // The signature covers the condition.
    proxy.add(Rule::on("PUT").times(1).then(Action::ignore_conditions(None)));
    assert_eq!(line.send("PUT", "k", &[], &[block_blob, CREATE[0]], b"third").unwrap().status(), 403);
    proxy.add(Rule::on("PUT").then(Action::ignore_conditions(Some(Resign::Azurite))));
    assert_eq!(line.send("PUT", "k", &[], &[block_blob, CREATE[0]], b"fourth").unwrap().status(), 201);
    assert_eq!(server.container().get("k").unwrap().as_ref(), b"fourth");
}

#[test]
fn a_refused_request_is_reset_and_unseen() {
    let (server, proxy, line) = small();
    let refused = proxy.add(Rule::on("PUT").key("k").nth(1).then(Action::Refuse));
    assert!(matches!(line.put_raw("k", b"content"), Err(WireError::NoAnswer(..))));
    assert_eq!((refused.count(), keys(server.bucket())), (1, vec![]));
    assert_eq!((proxy.log()[0].answered, proxy.log()[0].was_forwarded()), (None, false));
    line.put_raw("k", b"content").unwrap();
    assert_eq!(refused.count(), 1);

    proxy.add(Rule::on("GET").then(Action::Refuse));
    let (answer, end) = raw(&proxy, b"GET /test/k HTTP/1.1\r\nHost: x\r\n\r\n", PATIENT);
    assert!(answer.is_empty() && is_reset(&end.unwrap_err()));
}

#[test]
fn a_request_reset_before_is_read_in_part_and_unseen() {
    let (server, proxy, line) = small();
    proxy.add(Rule::on("PUT").then(Action::ResetBefore { after_bytes: 100_000 }));
    assert!(matches!(line.put_raw("k", &vec![7; 5_000_000]), Err(WireError::NoAnswer(..))));
    let request = &proxy.log()[0];
    assert!((100_000..4_000_000).contains(&request.bytes_in), "{}", request.bytes_in);
    assert_eq!((request.answered, request.was_forwarded(), keys(server.bucket())), (None, false, vec![]));
}

#[test]
fn a_request_reset_after_is_done_and_its_answer_lost() {
    let (server, proxy, line) = small();
    proxy.add(Rule::on("PUT").times(1).then(Action::ResetAfter));
    assert!(matches!(line.put_raw("k", b"content"), Err(WireError::NoAnswer(..))));
    assert_eq!(server.bucket().get("k").unwrap().as_ref(), b"content");
    assert_eq!((proxy.log()[0].answered, proxy.log()[0].upstream), (None, Upstream::Answered(StatusCode::OK)));

    proxy.add(Rule::on("GET").then(Action::ResetAfter));
    let (answer, end) = raw(&proxy, b"GET /test/k HTTP/1.1\r\nHost: x\r\n\r\n", PATIENT);
    assert!(answer.is_empty() && is_reset(&end.unwrap_err()));
}

#[test]
fn a_hanging_request_is_never_answered() {
    let (server, proxy, line) = small();
    proxy.add(Rule::on("PUT").key("before").then(Action::HangBefore));
    let hung = proxy.add(Rule::on("PUT").key("after").then(Action::HangAfter));
    let (answer, end) = raw(&proxy, b"PUT /test/before HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", IMPATIENT);
    assert!(answer.is_empty() && end.unwrap_err().kind() == io::ErrorKind::WouldBlock);
    assert_eq!((proxy.log()[0].bytes_in, proxy.log()[0].was_forwarded()), (3, false));

    let waiting = thread::spawn(move || line.put_raw("after", b"content"));
    assert!(hung.within(PATIENT));
    let began = Instant::now();
    while server.bucket().get("after").is_err() {
        assert!(began.elapsed() < PATIENT);
    }
    thread::sleep(IMPATIENT);
    assert!(!waiting.is_finished());
    // Nobody waits for a proxy that is gone.
    drop(proxy);
    assert!(matches!(waiting.join().unwrap(), Err(WireError::NoAnswer(..))));
    assert_eq!(keys(server.bucket()), ["after"]);
}

#[test]
fn the_proxy_answers_in_the_servers_stead() {
    let (server, proxy, line) = small();
    proxy.add(Rule::on("PUT").key("slow").then(Action::slow_down(7)));
    proxy.add(Rule::on("PUT").key("conflict").then(Action::s3_error(StatusCode::CONFLICT, "ConditionalRequestConflict")));
    proxy.add(Rule::on("PUT").key("not").then(Action::status(StatusCode::NOT_IMPLEMENTED)));
    let slow = line.send("PUT", "slow", &[], &[], &[7; 300_000]).unwrap();
    assert_eq!((slow.status().as_u16(), slow.headers()["retry-after"].as_bytes()), (503, b"7".as_slice()));
    let conflict = line.send("PUT", "conflict", &[], &[], b"x").unwrap();
    assert_eq!(conflict.status(), 409);
    assert!(String::from_utf8_lossy(conflict.body()).contains("<Code>ConditionalRequestConflict</Code>"));
    assert_eq!(line.send("PUT", "not", &[], &[], b"x").unwrap().status(), 501);
    assert_eq!(proxy.count(|request| request.was_forwarded()), 0);
    assert!(keys(server.bucket()).is_empty());
}

#[test]
fn an_error_hides_in_an_answer_of_200() {
    let (server, proxy, line) = small();
    proxy.add(Rule::on("PUT").key("undone").then(Action::OkWithError { error: "InternalError", forwarded: false }));
    proxy.add(Rule::on("PUT").key("done").then(Action::OkWithError { error: "InternalError", forwarded: true }));
    for key in ["undone", "done"] {
        let answer = line.send("PUT", key, &[], &[], b"x").unwrap();
        assert_eq!(answer.status(), 200);
        assert!(String::from_utf8_lossy(answer.body()).contains("<Error><Code>InternalError</Code>"));
    }
    assert_eq!(keys(server.bucket()), ["done"]);
}

#[test]
fn bytes_turn_and_answers_end_early() {
    // It does not compare bodies with their signatures.
    let server = SeaweedFs::start(Options::default()).unwrap();
    let proxy = Proxy::start(server.endpoint()).unwrap();
    let (bucket, line) = (server.bucket(), through(&proxy, server.bucket()));
    let content = vec![b'a'; 300_000];
    let mut damaged = content.clone();
    damaged[200_000] ^= 1;

    proxy.add(Rule::on("PUT").then(Action::CorruptRequest { offset: 200_000 }));
    line.put_raw("in", &content).unwrap();
    assert!(bucket.get("in").unwrap() == damaged);

    bucket.put_raw("out", &content).unwrap();
    proxy.add(Rule::on("GET").nth(1).then(Action::CorruptResponse { offset: 200_000 }));
    proxy.add(Rule::on("GET").nth(1).then(Action::TruncateResponse { after_bytes: 100_000 }));
    assert!(line.get("out").unwrap() == damaged);
    assert!(matches!(line.get("out"), Err(WireError::NoAnswer(..))));
    assert!(line.get("out").unwrap() == content);
}

#[test]
fn a_truncated_answer_has_so_many_bytes_and_a_reset() {
    let server = stub(|mut stream| {
        head_of(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n").unwrap();
        stream.write_all(&[b'x'; 100_000]).ok();
    });
    let proxy = Proxy::start(&server).unwrap();
    for wanted in [0, 1, 70_000] {
        proxy.clear_rules();
        proxy.add(Rule::any().then(Action::TruncateResponse { after_bytes: wanted }));
        let (answer, end) = raw(&proxy, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", PATIENT);
        let head = String::from_utf8_lossy(&answer).find("\r\n\r\n").unwrap() + 4;
        assert!(String::from_utf8_lossy(&answer).contains("content-length: 100000"));
        assert_eq!(answer.len() - head, usize::try_from(wanted).unwrap());
        assert!(is_reset(&end.unwrap_err()));
    }
}

#[test]
fn a_slow_request_takes_its_time() {
    let (server, proxy, line) = small();
    proxy.add(Rule::on("PUT").then(Action::Slow { bytes_per_second: 200_000 }));
    let began = Instant::now();
    line.put_raw("k", &vec![7; 200_000]).unwrap();
    let took = began.elapsed();
    assert!((Duration::from_millis(800)..Duration::from_secs(10)).contains(&took), "{took:?}");
    assert_eq!(server.bucket().get("k").unwrap().len(), 200_000);
}

#[test]
fn a_store_that_ignores_conditions_overwrites() {
    let server = SeaweedFs::start(Options { versioning: true, ..Options::default() }).unwrap();
    let proxy = Proxy::start(server.endpoint()).unwrap();
    let line = through(&proxy, server.bucket());
    let create = |content: &[u8]| line.send("PUT", "a/ä b", &[], &CREATE, content).unwrap().status();
    assert_eq!(create(b"first"), 200);
    assert_eq!(create(b"second"), 412);

    // The signature covers the condition.
    let unsigned = proxy.add(Rule::on("PUT").times(1).then(Action::ignore_conditions(None)));
    assert_eq!(create(b"third"), 403);
    assert_eq!(unsigned.count(), 1);

    proxy.add(Rule::any().then(Action::ignore_conditions(Some(Resign::S3(server.credentials().clone())))));
    assert_eq!(create(b"fourth"), 200);
    let checked = [("if-none-match", "*"), ("x-amz-checksum-sha256", "x3Xnt1ft5jDNCqERO9ECZhqziCnKUqZCKreChi8mhkY="), ("content-type", "text/plain")];
    assert_eq!(line.send("PUT", "a/ä b", &[("x-id", "PutObject")], &checked, b"abc").unwrap().status(), 400);
    let answer = line.send("PUT", "a/ä b", &[("x-id", "PutObject")], &[("if-none-match", "*"), ("content-type", "text/plain")], b"fifth").unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(line.get("a/ä b").unwrap().as_ref(), b"fifth");
    assert_eq!(server.bucket().versions().unwrap()["a/ä b"], 3);
}

#[test]
fn under_an_append_only_policy_nothing_is_changed_or_removed() {
    let server = SeaweedFs::start(Options { versioning: true, ..Options::default() }).unwrap();
    let proxy = Proxy::start(server.endpoint()).unwrap();
    let line = through(&proxy, server.bucket());
    proxy.set_policy(Policy::AppendOnly { dialect: Dialect::S3, abort_allowed: false });
    let status = |method: &str, key: &str, parameters: &[(&str, &str)], headers: &[(&str, &str)], body: &[u8]| {
        line.send(method, key, parameters, headers, body).unwrap().status().as_u16()
    };
    assert_eq!(status("PUT", "k", &[], &CREATE, b"first"), 200);
    assert_eq!(status("PUT", "k", &[], &CREATE, b"second"), 412);
    let refusal = line.send("PUT", "k", &[], &[], b"third").unwrap();
    assert_eq!(refusal.status(), 403);
    assert!(String::from_utf8_lossy(refusal.body()).contains("<Code>AccessDenied</Code>"));
    assert_eq!(status("PUT", "k", &[], &[("x-amz-copy-source", "/test/k")], b""), 403);
    assert_eq!(status("DELETE", "k", &[], &[], b""), 403);
    assert_eq!(status("POST", "", &[("delete", "")], &[], b"<Delete><Object><Key>k</Key></Object></Delete>"), 403);

    let begun = line.send_ok("POST", "big", &[("uploads", "")], &[], b"").unwrap();
    let text = String::from_utf8_lossy(begun.body()).into_owned();
    let upload = text.split_once("<UploadId>").unwrap().1.split_once("</UploadId>").unwrap().0;
    let part = line.send_ok("PUT", "big", &[("partNumber", "1"), ("uploadId", upload)], &[], b"part").unwrap();
    let etag = part.headers()["etag"].to_str().unwrap();
    let complete = format!("<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>").into_bytes();
    assert_eq!(status("POST", "big", &[("uploadId", upload)], &[], &complete), 403);
    assert_eq!(status("DELETE", "big", &[("uploadId", upload)], &[], b""), 403);
    assert_eq!(server.bucket().uploads().unwrap(), ["big"]);
    assert_eq!(server.bucket().uploads_with_ids().unwrap(), [("big".to_string(), upload.to_string())]);
    assert_eq!(status("POST", "big", &[("uploadId", upload)], &CREATE, &complete), 200);
    assert_eq!(server.bucket().get("big").unwrap().as_ref(), b"part");

    line.send_ok("POST", "other", &[("uploads", "")], &[], b"").unwrap();
    proxy.set_policy(Policy::AppendOnly { dialect: Dialect::S3, abort_allowed: true });
    assert_ne!(status("DELETE", "other", &[("uploadId", "none")], &[], b""), 403);

    let versions: Vec<_> = server.bucket().versions().unwrap().into_iter().collect();
    assert_eq!(versions, [("big".to_string(), 1), ("k".to_string(), 1)]);
    assert!(server.bucket().delete_markers().unwrap().is_empty());
    proxy.set_policy(Policy::ReadOnly { dialect: Dialect::S3 });
    assert_eq!((status("GET", "k", &[], &[], b""), status("PUT", "new", &[], &CREATE, b"x")), (200, 403));
}

#[test]
fn the_first_rule_that_fits_and_is_due_wins() {
    let (_server, proxy, line) = small();
    let first = proxy.add(Rule::on("PUT").key("a/").nth(2).then(Action::status(StatusCode::BAD_GATEWAY)));
    let second = proxy.add(Rule::on("PUT").path_prefix("/test/a/").after(1).times(2).then(Action::status(StatusCode::GATEWAY_TIMEOUT)));
    let third = proxy.add(Rule::any().query("partNumber").without_query("uploadId").then(Action::status(StatusCode::IM_A_TEAPOT)));
    let status = |key: &str, parameters: &[(&str, &str)]| line.send("PUT", key, parameters, &[], b"x").unwrap().status().as_u16();
    // The second of the first's is not one of the second's.
    assert_eq!([1, 2, 3, 4, 5].map(|number| status(&format!("a/{number}"), &[])), [200, 502, 504, 504, 200]);
    assert_eq!(status("b", &[]), 200);
    assert_eq!(status("b", &[("partNumber", "1")]), 418);
    assert_eq!((first.count(), second.count(), third.count()), (1, 2, 1));
    proxy.clear_rules();
    assert_eq!(status("b", &[]), 200);
}

#[test]
fn something_happens_between_a_request_and_its_arrival() {
    let server = SeaweedFs::start(Options::default()).unwrap();
    let proxy = Proxy::start(server.endpoint()).unwrap();
    let bucket = server.bucket().clone();
    proxy.add(Rule::on("PUT").key("k").nth(1).doing(move || bucket.put_raw("k", b"another's").unwrap()));
    let line = through(&proxy, server.bucket());
    assert_eq!(line.send("PUT", "k", &[], &CREATE, b"mine").unwrap().status(), 412);
    assert_eq!(line.get("k").unwrap().as_ref(), b"another's");
}

#[test]
fn an_upload_session_stays_on_the_line() {
    let (told, heard) = mpsc::channel();
    let server = stub(move |mut stream| {
        let head = head_of(&mut stream);
        let address = stream.local_addr().unwrap();
        told.send(head).unwrap();
        stream.write_all(format!("HTTP/1.1 201 Created\r\nLocation: http://{address}/b/k?upload_id=7\r\nContent-Length: 0\r\n\r\n").as_bytes()).unwrap();
    });
    let proxy = Proxy::start(&server).unwrap();
    let host = proxy.endpoint().trim_start_matches("http://").to_string();
    let request = format!("POST /b/k%2F%C3%A4?x=%20y HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nX-Custom: Value\r\nConnection: close\r\n\r\n");
    let (answer, _) = raw(&proxy, request.as_bytes(), PATIENT);
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains(&format!("location: http://{host}/b/k?upload_id=7\r\n")), "{answer}");
    let head = heard.recv().unwrap().to_ascii_lowercase();
    assert!(head.starts_with("post /b/k%2f%c3%a4?x=%20y http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: {host}\r\n")) && head.contains("x-custom: value\r\n") && head.contains("content-length: 0\r\n"), "{head}");
    assert!(!head.contains("connection:"));
    assert_eq!(proxy.log()[0].path, "/b/k/ä");
}

#[test]
fn google_goes_through_with_its_sessions_and_append_only() {
    let double = gcs::Double::start(gcs::Options::default());
    let proxy = Proxy::start(double.url()).unwrap();
    proxy.set_policy(Policy::AppendOnly { dialect: Dialect::Gcs, abort_allowed: false });
    let (host, token) = (proxy.endpoint().trim_start_matches("http://").to_string(), double.access_token("owner"));
    let ask = |method_and_path: &str, header: &str, body: &str| {
        let head = format!("{method_and_path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n{header}Connection: close\r\n");
        let (answer, _) = raw(&proxy, format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes(), PATIENT);
        String::from_utf8(answer).unwrap()
    };
    let is = |answer: &str, status: &str| assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    let create = "x-goog-if-generation-match: 0\r\n";
    is(&ask("PUT /bucket/k", create, "first"), "200");
    is(&ask("PUT /bucket/k", create, "second"), "412");
    is(&ask("PUT /bucket/k", "", "third"), "403");
    is(&ask("DELETE /bucket/k", "", ""), "403");
    is(&ask("POST /bucket/m?uploads", create, ""), "403");
    assert!(ask("DELETE /storage/v1/b/bucket/o/k", "", "").contains("\"code\":403"));

    let begun = ask("POST /upload/storage/v1/b/bucket/o?uploadType=resumable&name=s&ifGenerationMatch=0", "", "");
    let session = begun.lines().find_map(|line| line.strip_prefix("location: ")).unwrap();
    is(&ask(&format!("PUT {}", session.strip_prefix(&proxy.endpoint()).unwrap()), "", "in a session"), "200");
    assert_eq!((double.content("k"), double.content("s")), (Some(b"first".to_vec()), Some(b"in a session".to_vec())));
    assert_eq!((double.versions("k"), double.versions("s")), (1, 1));
}

#[test]
fn a_body_goes_through_while_it_comes() {
    const SIZE: usize = 64 << 20;
    let (told, heard) = mpsc::channel();
    let server = stub(move |mut stream| {
        assert!(head_of(&mut stream).contains(&format!("content-length: {SIZE}\r\n")));
        let mut piece = vec![0; 1 << 20];
        let mut seen = 0;
        while seen < SIZE {
            seen += stream.read(&mut piece).unwrap();
            told.send(seen).unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let proxy = Proxy::start(&server).unwrap();
    let mut stream = TcpStream::connect(proxy.endpoint().trim_start_matches("http://")).unwrap();
    let head = format!("PUT /b/k HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: {SIZE}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    // As clients do that do not want to send a body in vain.
    assert!(head_of(&mut stream).starts_with("HTTP/1.1 100"));
    stream.write_all(&vec![7; SIZE / 2]).unwrap();
    while heard.recv_timeout(PATIENT).unwrap() < SIZE / 2 {}
    stream.write_all(&vec![7; SIZE / 2]).unwrap();
    while heard.recv_timeout(PATIENT).unwrap() < SIZE {}
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"));
    assert_eq!(proxy.log()[0].bytes_in, SIZE as u64);
}

#[test]
fn a_server_that_is_gone_is_a_broken_connection() {
    let (server, proxy, line) = small();
    line.put_raw("k", b"x").unwrap();
    drop(server);
    assert!(matches!(line.put_raw("k", b"x"), Err(WireError::NoAnswer(..))));
    assert_eq!((proxy.log()[1].answered, proxy.log()[1].upstream), (None, Upstream::Asked));
    let address = proxy.endpoint();
    drop(proxy);
    assert!(TcpStream::connect(address.trim_start_matches("http://")).is_err());
}

#[tokio::test]
async fn it_can_be_used_within_a_runtime() {
    let (server, proxy, line) = small();
    line.put_raw("k", b"x").unwrap();
    assert_eq!(keys(server.bucket()), ["k"]);
    assert_eq!(proxy.count(|request| request.method == "PUT"), 1);
}
