//! How many requests were sent, of each kind that stores charge for.

use http::Method;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a request to an object store is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// Creating an object, or a part of one.
    Create,
    /// Asking what an object is, without its bytes.
    Look,
    /// Reading an object.
    Read,
    /// Listing names.
    List,
    /// Removing an object, or ending an upload.
    Remove,
}

impl RequestKind {
    /// All, in their order.
    pub const ALL: [Self; 5] = [Self::Create, Self::Look, Self::Read, Self::List, Self::Remove];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Look => "look",
            Self::Read => "read",
            Self::List => "list",
            Self::Remove => "remove",
        }
    }

    /// What a request with this method and query is for.
    pub(super) fn of(method: &Method, query: Option<&str>) -> Self {
        let lists = || query.is_some_and(|query| query.split('&').any(|word| matches!(word, "list-type=2" | "comp=list" | "uploads")));
        match *method {
            Method::HEAD => Self::Look,
            Method::DELETE => Self::Remove,
            Method::GET if lists() => Self::List,
            Method::GET => Self::Read,
            _ => Self::Create,
        }
    }
}

/// Requests that were sent to a store, each attempt counted, whatever came of it. Those for credentials and tokens are not among them.
#[derive(Debug, Default)]
pub struct Requests {
    create: AtomicU64,
    look: AtomicU64,
    read: AtomicU64,
    list: AtomicU64,
    remove: AtomicU64,
}

impl Requests {
    fn of(&self, kind: RequestKind) -> &AtomicU64 {
        match kind {
            RequestKind::Create => &self.create,
            RequestKind::Look => &self.look,
            RequestKind::Read => &self.read,
            RequestKind::List => &self.list,
            RequestKind::Remove => &self.remove,
        }
    }

    pub(super) fn note(&self, kind: RequestKind) {
        self.of(kind).fetch_add(1, Ordering::Relaxed);
    }

    /// How many of this kind were sent so far.
    #[must_use]
    pub fn count(&self, kind: RequestKind) -> u64 {
        self.of(kind).load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_what_stores_charge_it_as() {
        let kinds = [
            (Method::PUT, Some("partNumber=1&uploadId=x"), RequestKind::Create),
            (Method::POST, Some("uploads"), RequestKind::Create),
            (Method::GET, Some("list-type=2&prefix=log%2F"), RequestKind::List),
            (Method::GET, Some("restype=container&comp=list"), RequestKind::List),
            (Method::GET, None, RequestKind::Read),
            (Method::GET, Some("versionId=list-type"), RequestKind::Read),
            (Method::HEAD, None, RequestKind::Look),
            (Method::DELETE, Some("uploadId=x"), RequestKind::Remove),
        ];
        let requests = Requests::default();
        for (method, query, kind) in kinds {
            assert_eq!(RequestKind::of(&method, query), kind, "{method} {query:?}");
            requests.note(kind);
        }
        assert_eq!(RequestKind::ALL.map(|kind| requests.count(kind)), [2, 1, 2, 2, 1]);
    }
}
