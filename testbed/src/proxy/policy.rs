//! Who may do what: the least privilege a backup needs, as the big stores can grant it and the small servers cannot.

use hyper::StatusCode;

use super::log::Seen;
use super::rule::s3_error_body;

/// How a store is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// S3.
    S3,
    /// Google Cloud Storage, XML and JSON.
    Gcs,
    /// Azure's blob storage.
    Azure,
}

/// What the proxy lets through to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Everything.
    Everything,
    /// Objects can be created where there is none, and be read; nothing can be changed or removed. What breaks that is answered 403.
    AppendOnly {
        /// How the store is spoken to.
        dialect: Dialect,
        /// Whether an upload in parts can be given up.
        abort_allowed: bool,
    },
    /// Objects can be read and listed, nothing else.
    ReadOnly {
        /// How the store is spoken to.
        dialect: Dialect,
    },
    /// Objects can be read and listed, and by the starts of their paths be created or removed: S3 and Google, in one request each.
    Pruner {
        /// How the store is spoken to.
        dialect: Dialect,
        /// Paths, the bucket in front, of what can be created where there is none.
        creates: &'static [String],
        /// Paths of what can be removed.
        removes: &'static [String],
        /// What cannot be removed all the same: names that end so, and what lies in folders that end so.
        keeps: &'static str,
    },
}

/// An answer in the server's stead.
pub(super) struct Denial {
    pub(super) status: StatusCode,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
}

impl Policy {
    /// The answer to a request that is not allowed.
    pub(super) fn denies(self, seen: &Seen) -> Option<Denial> {
        let (dialect, allowed) = match self {
            Self::Everything => return None,
            Self::ReadOnly { dialect } => (dialect, is_read(seen) || (dialect == Dialect::Gcs && is_token(seen))),
            Self::AppendOnly { dialect, abort_allowed } => {
                let allowed = is_read(seen)
                    || match dialect {
                        Dialect::S3 => s3_appends(seen, abort_allowed),
                        Dialect::Gcs => gcs_appends(seen, abort_allowed),
                        Dialect::Azure => azure_appends(seen),
                    };
                (dialect, allowed)
            }
            Self::Pruner { dialect, creates, removes, keeps } => {
                let below = |starts: &[String]| starts.iter().any(|start| seen.path.starts_with(start));
                let kept = || seen.path.ends_with(keeps) || seen.path.contains(&format!("{keeps}/"));
                let allowed = match (seen.method.as_str(), dialect) {
                    ("DELETE", _) => whole_object(seen) && below(removes) && !kept(),
                    ("PUT", Dialect::S3) => s3_appends(seen, false) && below(creates),
                    ("PUT", Dialect::Gcs) => gcs_appends(seen, false) && below(creates),
                    ("POST", Dialect::Gcs) => is_token(seen),
                    _ => is_read(seen),
                };
                (dialect, allowed)
            }
        };
        (!allowed).then(|| denial(dialect, seen))
    }
}

fn is_read(seen: &Seen) -> bool {
    ["GET", "HEAD", "OPTIONS"].contains(&seen.method.as_str())
}

fn says(seen: &Seen, header: &str, value: &str) -> bool {
    seen.headers.get(header).is_some_and(|found| found.as_bytes() == value.as_bytes())
}

/// Whether a request that writes an object writes that and nothing else: not its tags, not a bucket's rules.
fn whole_object(seen: &Seen) -> bool {
    seen.parameter_names().all(|name| name == "x-id" || name.starts_with("X-Amz-") || name.starts_with("X-Goog-"))
}

fn s3_appends(seen: &Seen, abort_allowed: bool) -> bool {
    let creates = says(seen, "if-none-match", "*");
    match seen.method.as_str() {
        // A part is no object yet.
        "PUT" if seen.has("partNumber") && seen.has("uploadId") => true,
        "PUT" => creates && whole_object(seen),
        "POST" if seen.has("uploads") => true,
        "POST" if seen.has("uploadId") => creates,
        // A copy for reading out of an archive; the object stays.
        "POST" => seen.has("restore"),
        "DELETE" => abort_allowed && seen.has("uploadId"),
        _ => false,
    }
}

fn azure_appends(seen: &Seen) -> bool {
    let creates = says(seen, "if-none-match", "*");
    match seen.method.as_str() {
        "PUT" if seen.has("comp=block") => true,
        "PUT" if seen.has("comp=blocklist") || !seen.has("comp") => creates && !seen.has("restype"),
        _ => false,
    }
}

/// Whether a token is asked for, which is no matter of the store.
fn is_token(seen: &Seen) -> bool {
    seen.method == "POST" && seen.path.ends_with("/token")
}

fn is_json(seen: &Seen) -> bool {
    ["/storage/v1/", "/upload/storage/v1/", "/resumable/upload/storage/v1/"].iter().any(|prefix| seen.path.starts_with(prefix))
}

fn gcs_appends(seen: &Seen, abort_allowed: bool) -> bool {
    let creates = if is_json(seen) { seen.has("ifGenerationMatch=0") } else { says(seen, "x-goog-if-generation-match", "0") };
    // The condition was checked when the session began.
    let in_session = seen.has("upload_id");
    match seen.method.as_str() {
        "PUT" if in_session => true,
        // XML's upload in parts takes no condition at all.
        "PUT" | "POST" if seen.has("uploads") || seen.has("uploadId") || seen.has("partNumber") => false,
        "PUT" => creates && !is_json(seen) && whole_object(seen),
        "POST" if is_token(seen) => true,
        "POST" => creates,
        "DELETE" => abort_allowed && in_session,
        _ => false,
    }
}

fn denial(dialect: Dialect, seen: &Seen) -> Denial {
    let status = StatusCode::FORBIDDEN;
    let xml = |error: &str| (vec![("content-type", "application/xml".to_string())], s3_error_body(error));
    let (headers, body) = match dialect {
        Dialect::Gcs if is_json(seen) => {
            let body = serde_json::json!({"error": {"code": 403, "message": "The caller may only create objects.", "errors": [{"reason": "forbidden"}]}});
            (vec![("content-type", "application/json".to_string())], body.to_string())
        }
        Dialect::S3 | Dialect::Gcs => xml("AccessDenied"),
        Dialect::Azure => {
            let (mut headers, body) = xml("AuthorizationPermissionMismatch");
            headers.push(("x-ms-error-code", "AuthorizationPermissionMismatch".to_string()));
            (headers, body)
        }
    };
    Denial { status, headers, body }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(dialect: Dialect, request: &str, header: &str) -> bool {
        permits(Policy::AppendOnly { dialect, abort_allowed: true }, request, header)
    }

    fn permits(policy: Policy, request: &str, header: &str) -> bool {
        let (method, uri) = request.split_once(' ').unwrap();
        let mut builder = hyper::Request::builder().method(method).uri(uri);
        if let Some((name, value)) = header.split_once(": ") {
            builder = builder.header(name, value);
        }
        let seen = Seen::new(&builder.body(()).unwrap().into_parts().0);
        policy.denies(&seen).is_none()
    }

    #[test]
    fn an_append_only_s3_takes_creates_and_reads_alone() {
        let s3 = |request, header| allowed(Dialect::S3, request, header);
        let create = "if-none-match: *";
        assert!(s3("GET /b/k", "") && s3("HEAD /b/k", ""));
        assert!(s3("PUT /b/k", create) && !s3("PUT /b/k", "") && !s3("PUT /b/k", "if-none-match: \"etag\""));
        assert!(!s3("PUT /b/k", "x-amz-copy-source: /b/other"));
        assert!(s3("POST /b/k?uploads", "") && s3("PUT /b/k?partNumber=1&uploadId=x", ""));
        assert!(s3("POST /b/k?uploadId=x", create) && !s3("POST /b/k?uploadId=x", ""));
        assert!(!s3("DELETE /b/k", "") && !s3("DELETE /b/k", create) && !s3("POST /b?delete", "") && s3("DELETE /b/k?uploadId=x", ""));
        assert!(!s3("PUT /b/k?tagging", create) && !s3("PUT /b/k?retention", create) && !s3("PUT /b?lifecycle", create) && !s3("POST /b", ""));
        assert!(s3("PUT /b/k?x-id=PutObject", create) && s3("PUT /b/k?X-Amz-Expires=9", create));
    }

    #[test]
    fn a_pruner_creates_here_and_removes_there_and_nothing_else() {
        static CREATES: std::sync::LazyLock<Vec<String>> = std::sync::LazyLock::new(|| vec!["/b/p/log/".into(), "/b/p/format.json".into()]);
        static REMOVES: std::sync::LazyLock<Vec<String>> = std::sync::LazyLock::new(|| vec!["/b/p/database/".into(), "/b/p/video/".into()]);
        for (dialect, create) in [(Dialect::S3, "if-none-match: *"), (Dialect::Gcs, "x-goog-if-generation-match: 0")] {
            let policy = Policy::Pruner { dialect, creates: &CREATES, removes: &REMOVES, keeps: "-MP.mp4" };
            let pruner = |request, header| permits(policy, request, header);
            assert!(pruner("GET /b/p/k", "") && pruner("PUT /b/p/log/1", create) && pruner("PUT /b/p/format.json", create));
            assert!(!pruner("PUT /b/p/log/1", "") && !pruner("PUT /b/p/database/d", create) && !pruner("PUT /b/log/1", create));
            assert!(pruner("DELETE /b/p/database/d", "") && pruner("DELETE /b/p/video/a.mp4", "") && pruner("DELETE /b/p/video/a.mp4/1f", ""));
            assert!(!pruner("DELETE /b/p/video/a-MP.mp4", "") && !pruner("DELETE /b/p/video/a-MP.mp4/1f", ""));
            assert!(!pruner("DELETE /b/p/log/1", "") && !pruner("DELETE /b/p/library/a", "") && !pruner("DELETE /b/p/database/d?versionId=1", ""));
            assert!(!pruner("POST /b?delete", "") && !pruner("POST /b/p/log/1?uploads", create));
        }
    }

    #[test]
    fn an_append_only_gcs_takes_creates_and_reads_alone() {
        let gcs = |request, header| allowed(Dialect::Gcs, request, header);
        let create = "x-goog-if-generation-match: 0";
        assert!(gcs("PUT /b/k", create) && !gcs("PUT /b/k", "") && !gcs("PUT /b/k", "x-goog-if-generation-match: 7"));
        assert!(!gcs("POST /b/k?uploads", create) && !gcs("PUT /b/k?partNumber=1&uploadId=x", create) && !gcs("POST /b/k?uploadId=x", create));
        assert!(gcs("POST /b/k", create) && !gcs("POST /b/k", "x-goog-resumable: start") && gcs("PUT /b/k?upload_id=x", ""));
        assert!(gcs("POST /upload/storage/v1/b/b/o?uploadType=resumable&name=k&ifGenerationMatch=0", ""));
        assert!(!gcs("POST /upload/storage/v1/b/b/o?uploadType=resumable&name=k", create));
        assert!(gcs("PUT /upload/storage/v1/b/b/o?uploadType=resumable&upload_id=x", ""));
        assert!(!gcs("DELETE /b/k", "") && !gcs("PATCH /storage/v1/b/b/o/k", "") && gcs("POST /token", ""));
    }

    #[test]
    fn an_append_only_azure_takes_creates_and_reads_alone() {
        let azure = |request, header| allowed(Dialect::Azure, request, header);
        let create = "if-none-match: *";
        assert!(azure("PUT /a/c/k", create) && !azure("PUT /a/c/k", ""));
        assert!(azure("PUT /a/c/k?comp=block&blockid=x", "") && azure("PUT /a/c/k?comp=blocklist", create) && !azure("PUT /a/c/k?comp=blocklist", ""));
        assert!(!azure("PUT /a/c/k?comp=tier", create) && !azure("DELETE /a/c/k", "") && !azure("PUT /a/c?restype=container", create));
    }
}
