//! Who may speak to a router that asks for no keys: programs on this machine, and no page that a browser took from
//! elsewhere.

use std::net::Ipv4Addr;

use http::request::Parts;
use http::uri::{Authority, Uri};
use http::{HeaderValue, header};
use penstock_proto::ErrorCode;

use crate::request::Failure;

/// Refuses a foreign Host (a name that an attacker made resolve to this machine) and a cross-site Origin (a page that
/// sends requests to it).
pub(super) fn check(head: &Parts) -> Result<(), Failure> {
    let written = head.headers.get_all(header::HOST).iter().map(|value| authority(value.as_bytes()));
    let mut hosts = head.uri.authority().cloned().map(Some).into_iter().chain(written).peekable();
    if hosts.peek().is_none() || !hosts.all(|host| host.is_some_and(|host| is_loopback(host.host()))) {
        return Err(forbidden("the Host header does not name this machine; without keys only localhost may be asked"));
    }
    if !head.headers.get_all(header::ORIGIN).iter().all(is_local_origin) {
        return Err(forbidden("the Origin header names another site; without keys only pages of localhost may ask"));
    }
    Ok(())
}

fn forbidden(message: &str) -> Failure {
    Failure::new(ErrorCode::Forbidden, message)
}

fn authority(value: &[u8]) -> Option<Authority> {
    Authority::try_from(value).ok()
}

fn is_local_origin(origin: &HeaderValue) -> bool {
    let uri = Uri::try_from(origin.as_bytes()).ok();
    uri.is_some_and(|uri| uri.scheme().is_some() && uri.host().is_some_and(is_loopback))
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host == "[::1]"
        || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(uri: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = http::Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap().into_parts().0).is_ok()
    }

    #[test]
    fn only_names_of_this_machine_are_hosts() {
        for host in ["localhost", "LocalHost:8080", "127.0.0.1:1", "127.8.9.1", "[::1]:8080", "[::1]"] {
            assert!(allows("/v1/models", &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "0.0.0.0",
            "",
            "[::2]",
            "127.1",
            "localhost, evil.example",
            "user@evil.example",
        ] {
            assert!(!allows("/v1/models", &[("host", host)]), "{host}");
        }
        assert!(!allows("/v1/models", &[]));
        assert!(!allows("/v1/models", &[("host", "localhost"), ("host", "evil.example")]));
        assert!(allows("http://localhost:8080/v1/models", &[]));
        assert!(!allows("http://evil.example/v1/models", &[("host", "localhost")]));
    }

    #[test]
    fn only_pages_of_this_machine_are_origins() {
        for origin in ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:5173"] {
            assert!(allows("/", &[("host", "localhost"), ("origin", origin)]), "{origin}");
        }
        for origin in ["null", "https://evil.example", "http://localhost.evil.example", "localhost", "", "file://"] {
            assert!(!allows("/", &[("host", "localhost"), ("origin", origin)]), "{origin}");
        }
    }
}
