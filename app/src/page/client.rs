//! Who asks: from which address, over which protocol, and whether from a page of ours.

use crate::config::UsageError;
use axum::http::{HeaderMap, HeaderName, header};
use std::net::IpAddr;

/// Entries of `X-Forwarded-For` that are looked at.
const HOPS_MAX: usize = 16;

/// An address, or all that begin like it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    /// `10.0.0.2`, `172.16.0.0/12`, `fd00::/8`.
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().ok()?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(all), |bits| bits.parse().ok().filter(|bits| *bits <= all))?;
        Some(Self { address, bits })
    }

    fn has(&self, other: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
            IpAddr::V6(address) => address.to_bits(),
        };
        let mask = u128::MAX.checked_shl(128 - self.bits).unwrap_or(0);
        self.address.is_ipv4() == other.is_ipv4() && (bits(self.address) ^ bits(other)) & mask == 0
    }
}

/// The reverse proxies whose word counts.
#[derive(Debug, Clone, Default)]
pub struct Proxies(Vec<Network>);

impl Proxies {
    /// Those of `--page-trusted-proxy`.
    ///
    /// # Errors
    /// One is no address.
    pub fn of(texts: &[String]) -> Result<Self, UsageError> {
        let parse = |text: &String| {
            let wrong = || UsageError(format!("--page-trusted-proxy takes addresses like 10.0.0.2 or networks like 10.0.0.0/29, not `{text}`"));
            Network::parse(text).ok_or_else(wrong)
        };
        texts.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    fn has(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.has(address.to_canonical()))
    }

    /// Whose request this is: the peer's, or that of whom the last proxy that is trusted has it from. What somebody else claims counts nothing.
    #[must_use]
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let named: Vec<_> = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).collect();
        for hop in named.into_iter().rev().take(HOPS_MAX) {
            if !self.has(client) {
                break;
            }
            let Ok(before) = hop.trim().parse::<IpAddr>() else { break };
            client = before.to_canonical();
        }
        client
    }
}

fn text(headers: &HeaderMap, name: impl Into<HeaderName>) -> Option<&str> {
    headers.get(name.into())?.to_str().ok()
}

/// Whether a proxy says that the browser speaks HTTPS. Who lies here makes a cookie that only HTTPS takes along: their own.
#[must_use]
pub fn is_https(headers: &HeaderMap) -> bool {
    text(headers, HeaderName::from_static("x-forwarded-proto"))
        .is_some_and(|protocol| protocol.split(',').next_back().is_some_and(|last| last.trim() == "https"))
}

/// Whether a page of ours sent this. Browsers say so themselves; those that do not, and speak without TLS, name the page's origin.
#[must_use]
pub fn is_own(headers: &HeaderMap) -> bool {
    if let Some(site) = text(headers, HeaderName::from_static("sec-fetch-site")) {
        return matches!(site, "same-origin" | "none");
    }
    match text(headers, header::ORIGIN) {
        Some(origin) => {
            let host = text(headers, header::HOST).unwrap_or_default();
            !host.is_empty() && origin.split_once("://").is_some_and(|(_, named)| named.eq_ignore_ascii_case(host))
        }
        // No browser.
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn proxies(texts: &[&str]) -> Proxies {
        Proxies::of(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn only_a_trusted_proxy_says_who_asks() {
        let client =
            |proxies: &Proxies, peer: &str, named: &'static str| proxies.client(peer.parse().unwrap(), &headers(&[("x-forwarded-for", named)])).to_string();
        let none = Proxies::default();
        assert_eq!(client(&none, "127.0.0.1", "192.0.2.1"), "127.0.0.1");
        let trusted = proxies(&["172.16.0.0/12", "127.0.0.1", "fd00::/8"]);
        assert_eq!(client(&trusted, "127.0.0.1", "192.0.2.1"), "192.0.2.1");
        assert_eq!(client(&trusted, "::ffff:127.0.0.1", "192.0.2.1"), "192.0.2.1");
        assert_eq!(client(&trusted, "198.51.100.1", "192.0.2.1"), "198.51.100.1");
        // What the client itself has put before is not believed.
        assert_eq!(client(&trusted, "172.20.0.3", "192.0.2.66, 192.0.2.1"), "192.0.2.1");
        assert_eq!(client(&trusted, "fd00::1", "192.0.2.1, 172.31.255.255"), "192.0.2.1");
        assert_eq!(client(&trusted, "172.32.0.1", "192.0.2.1"), "172.32.0.1");
        assert_eq!(client(&trusted, "127.0.0.1", "unknown"), "127.0.0.1");
        for bad in ["", "10.0.0.0/33", "10.0.0.0/-1", "proxy", "10.0.0.1:80"] {
            assert!(Proxies::of(&[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(proxies(&["0.0.0.0/0"]).has("8.8.8.8".parse().unwrap()) && !proxies(&["0.0.0.0/0"]).has("::1".parse().unwrap()));
    }

    #[test]
    fn what_another_site_sends_is_not_ours() {
        assert!(is_own(&headers(&[("sec-fetch-site", "same-origin"), ("origin", "https://b.example"), ("host", "internal:9300")])));
        assert!(is_own(&headers(&[("origin", "http://nas:9300"), ("host", "nas:9300")])));
        assert!(is_own(&headers(&[])));
        for other in [
            vec![("sec-fetch-site", "cross-site"), ("origin", "http://nas:9300"), ("host", "nas:9300")],
            vec![("sec-fetch-site", "same-site")],
            vec![("origin", "http://evil.example"), ("host", "nas:9300")],
            vec![("origin", "http://nas:9300.evil.example"), ("host", "nas:9300")],
            vec![("origin", "null"), ("host", "nas:9300")],
            vec![("origin", "http://nas:9300")],
        ] {
            assert!(!is_own(&headers(&other)), "{other:?}");
        }
    }
}
