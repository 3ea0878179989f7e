//! Plain HTTP/1.1 to a server on this machine: a connection for each request, and no retry that could hide what happened.

use std::thread;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::HOST;
use hyper::http::uri::InvalidUri;
use hyper::{Request, Response, StatusCode, Uri, client::conn::http1};
use hyper_util::rt::TokioIo;
use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;
use tokio::net::TcpStream;

/// Why a request has no answer, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The server cannot be reached, or the connection broke.
    #[error("no answer to {0}")]
    NoAnswer(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server refused.
    #[error("{asked} was answered {status}: {body}")]
    Refused {
        /// Method and address of the request.
        asked: String,
        /// Its answer.
        status: StatusCode,
        /// What the server says about it.
        body: String,
    },
    /// The request cannot be made.
    #[error("cannot make a request: {0}")]
    Request(Box<dyn std::error::Error + Send + Sync>),
    /// The server gives a page of its listing again that it gave before.
    #[error("the listing of {0} does not come to an end")]
    Endless(String),
    /// The answer is no XML.
    #[error("the answer is no XML")]
    Xml(#[from] quick_xml::Error),
}

impl From<InvalidUri> for WireError {
    fn from(error: InvalidUri) -> Self {
        Self::Request(error.into())
    }
}

impl From<hyper::http::Error> for WireError {
    fn from(error: hyper::http::Error) -> Self {
        Self::Request(error.into())
    }
}

impl From<object_store::Error> for WireError {
    fn from(error: object_store::Error) -> Self {
        Self::Request(error.into())
    }
}

/// Sends a request in origin form over a new connection to `address` (`host:port`).
pub(crate) async fn forward<B>(address: &str, request: Request<B>) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

/// A server on this machine that is silent for so long hangs.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// The whole answer to a request whose URI is absolute; blocks this thread, whether it belongs to a runtime or not.
pub(crate) fn fetch(request: Request<Bytes>) -> Result<Response<Bytes>, WireError> {
    let asked = format!("{} {}", request.method(), request.uri());
    let address = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let (mut parts, body) = request.into_parts();
    let origin_form = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse::<Uri>()?;
    parts.uri = origin_form;
    if !parts.headers.contains_key(HOST) {
        parts.headers.insert(HOST, address.parse().map_err(|error| WireError::Request(Box::new(error)))?);
    }
    let request = Request::from_parts(parts, Full::new(body));
    let whole = async {
        let (parts, body) = forward(&address, request).await?.into_parts();
        Ok(Response::from_parts(parts, body.collect().await?.to_bytes()))
    };
    let whole = async { tokio::time::timeout(ANSWERED_WITHIN, whole).await? };
    // A runtime cannot be entered from within another one, so this has a thread of its own.
    let answer = thread::scope(|scope| {
        let asking = scope.spawn(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(whole));
        asking.join().unwrap_or_else(|_| Err("the client panicked".into()))
    });
    answer.map_err(|cause| WireError::NoAnswer(asked, cause))
}

/// Like [`fetch`], but any answer other than 2xx is an error.
pub(crate) fn fetch_ok(request: Request<Bytes>) -> Result<Response<Bytes>, WireError> {
    let asked = format!("{} {}", request.method(), request.uri());
    let answer = fetch(request)?;
    if answer.status().is_success() {
        return Ok(answer);
    }
    Err(WireError::Refused { asked, status: answer.status(), body: String::from_utf8_lossy(answer.body()).into_owned() })
}

/// One element of a listing: its leaves, by name and in order, at whatever depth they stand.
pub(crate) struct Entry {
    /// The element's own name.
    pub(crate) name: String,
    leaves: Vec<(String, String)>,
}

impl Entry {
    /// The text of the first leaf of that name.
    pub(crate) fn leaf(&self, name: &str) -> Option<&str> {
        self.leaves.iter().find(|(leaf, _)| leaf == name).map(|(_, text)| text.as_str())
    }
}

/// What stands in the elements of these names, in their order; `names` may hold leaves too.
pub(crate) fn entries(xml: &[u8], names: &[&str]) -> Result<Vec<Entry>, WireError> {
    let mut reader = Reader::from_reader(xml);
    let mut found: Vec<Entry> = Vec::new();
    let mut path: Vec<String> = Vec::new();
    let mut inside: Option<usize> = None;
    let mut text = String::new();
    let mut is_leaf = false;
    loop {
        match reader.read_event()? {
            Event::Start(start) => {
                let name = String::from_utf8_lossy(start.local_name().as_ref()).into_owned();
                if inside.is_none() && names.contains(&name.as_str()) {
                    inside = Some(path.len());
                    found.push(Entry { name: name.clone(), leaves: Vec::new() });
                }
                path.push(name);
                text.clear();
                is_leaf = true;
            }
            Event::Text(raw) => text.push_str(&raw.decode().map_err(quick_xml::Error::from)?),
            Event::CData(raw) => text.push_str(&raw.decode().map_err(quick_xml::Error::from)?),
            Event::GeneralRef(entity) => match entity.resolve_char_ref()? {
                Some(character) => text.push(character),
                None => text.push_str(resolve_predefined_entity(&entity.decode().map_err(quick_xml::Error::from)?).unwrap_or_default()),
            },
            Event::End(_) => {
                let name = path.pop().unwrap_or_default();
                if let (true, Some(_), Some(entry)) = (is_leaf, inside, found.last_mut()) {
                    entry.leaves.push((name, std::mem::take(&mut text)));
                }
                is_leaf = false;
                if inside == Some(path.len()) {
                    inside = None;
                }
            }
            Event::Eof => return Ok(found),
            _ => {}
        }
    }
}

/// The text of the first element of that name.
pub(crate) fn text_of(xml: &[u8], name: &str) -> Result<Option<String>, WireError> {
    Ok(entries(xml, &[name])?.first().and_then(|entry| entry.leaf(name)).map(ToString::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_a_listing_keep_their_order_and_their_text() {
        let xml = b"<?xml version=\"1.0\"?><R xmlns=\"x\"><Next/><Version><Key>a &amp; &#98;</Key><Owner><ID>me</ID></Owner></Version>\
            <DeleteMarker><Key>c</Key></DeleteMarker><Version><Key/><Key>d</Key></Version><IsTruncated>true</IsTruncated></R>";
        let found = entries(xml, &["Version", "DeleteMarker"]).unwrap();
        let seen: Vec<_> = found.iter().map(|entry| (entry.name.as_str(), entry.leaf("Key"))).collect();
        assert_eq!(seen, [("Version", Some("a & b")), ("DeleteMarker", Some("c")), ("Version", Some("d"))]);
        assert_eq!(found[0].leaf("ID"), Some("me"));
        assert_eq!(text_of(xml, "IsTruncated").unwrap().as_deref(), Some("true"));
        assert_eq!(text_of(xml, "Next").unwrap(), None);
    }
}
