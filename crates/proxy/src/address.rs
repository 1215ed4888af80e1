//! An address, and how headers write it.

use std::net::IpAddr;

use http::HeaderValue;

/// The text is made once, not with every request of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    ip: IpAddr,
    text: HeaderValue,
}

impl Address {
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    pub fn text(&self) -> &HeaderValue {
        &self.text
    }
}

impl From<IpAddr> for Address {
    /// A socket for both families tells IPv4 addresses as IPv6 ones; here they are what they are.
    fn from(ip: IpAddr) -> Self {
        let ip = ip.to_canonical();
        let text = HeaderValue::try_from(ip.to_string());
        Self {
            ip,
            // Never: digits, letters, dots and colons can stand in a header (RFC 7239 6.2).
            text: text.unwrap_or(HeaderValue::from_static("unknown")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form_of_an_address() {
        for (given, text) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:DB8::0:1", "2001:db8::1"),
        ] {
            let address = Address::from(given.parse::<IpAddr>().unwrap());
            assert_eq!(address.text(), text);
            assert_eq!(address.ip().to_string(), text);
        }
    }
}
