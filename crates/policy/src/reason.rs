//! Why a criterion came out as it did.

use std::fmt;

/// Why a criterion holds or does not. The texts stand in logs and are the same as in Pomerium.
///
/// Declared in the alphabetical order of the texts: [`Reasons`] relies on it for sorting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    Accept,
    ClaimOk,
    ClaimUnauthorized,
    ClientCertificateOk,
    ClientCertificateRequired,
    ClientCertificateUnauthorized,
    CorsRequest,
    DateOk,
    DateUnauthorized,
    DayOfWeekOk,
    DayOfWeekUnauthorized,
    DeviceOk,
    /// Signed in, but with no device of the type that is asked for.
    DeviceUnauthenticated,
    DeviceUnauthorized,
    DomainOk,
    DomainUnauthorized,
    EmailOk,
    EmailUnauthorized,
    GroupsOk,
    GroupsUnauthorized,
    HttpMethodOk,
    HttpMethodUnauthorized,
    HttpPathOk,
    HttpPathUnauthorized,
    InvalidClientCertificate,
    NonCorsRequest,
    NonPomeriumRoute,
    PomeriumRoute,
    RecordOk,
    RecordUnauthorized,
    Reject,
    /// Never from a policy: for whoever looks the route up.
    RouteNotFound,
    SourceIpOk,
    SourceIpUnauthorized,
    TimeOfDayOk,
    TimeOfDayUnauthorized,
    UserOk,
    /// Nobody is signed in, and it matters who asks.
    UserUnauthenticated,
    UserUnauthorized,
    ValidClientCertificate,
}

impl Reason {
    /// Every reason, sorted by its text.
    pub const ALL: [Self; 40] = [
        Self::Accept,
        Self::ClaimOk,
        Self::ClaimUnauthorized,
        Self::ClientCertificateOk,
        Self::ClientCertificateRequired,
        Self::ClientCertificateUnauthorized,
        Self::CorsRequest,
        Self::DateOk,
        Self::DateUnauthorized,
        Self::DayOfWeekOk,
        Self::DayOfWeekUnauthorized,
        Self::DeviceOk,
        Self::DeviceUnauthenticated,
        Self::DeviceUnauthorized,
        Self::DomainOk,
        Self::DomainUnauthorized,
        Self::EmailOk,
        Self::EmailUnauthorized,
        Self::GroupsOk,
        Self::GroupsUnauthorized,
        Self::HttpMethodOk,
        Self::HttpMethodUnauthorized,
        Self::HttpPathOk,
        Self::HttpPathUnauthorized,
        Self::InvalidClientCertificate,
        Self::NonCorsRequest,
        Self::NonPomeriumRoute,
        Self::PomeriumRoute,
        Self::RecordOk,
        Self::RecordUnauthorized,
        Self::Reject,
        Self::RouteNotFound,
        Self::SourceIpOk,
        Self::SourceIpUnauthorized,
        Self::TimeOfDayOk,
        Self::TimeOfDayUnauthorized,
        Self::UserOk,
        Self::UserUnauthenticated,
        Self::UserUnauthorized,
        Self::ValidClientCertificate,
    ];

    /// The text in logs, such as `email-ok`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::ClaimOk => "claim-ok",
            Self::ClaimUnauthorized => "claim-unauthorized",
            Self::ClientCertificateOk => "client-certificate-ok",
            Self::ClientCertificateRequired => "client-certificate-required",
            Self::ClientCertificateUnauthorized => "client-certificate-unauthorized",
            Self::CorsRequest => "cors-request",
            Self::DateOk => "date-ok",
            Self::DateUnauthorized => "date-unauthorized",
            Self::DayOfWeekOk => "day-of-week-ok",
            Self::DayOfWeekUnauthorized => "day-of-week-unauthorized",
            Self::DeviceOk => "device-ok",
            Self::DeviceUnauthenticated => "device-unauthenticated",
            Self::DeviceUnauthorized => "device-unauthorized",
            Self::DomainOk => "domain-ok",
            Self::DomainUnauthorized => "domain-unauthorized",
            Self::EmailOk => "email-ok",
            Self::EmailUnauthorized => "email-unauthorized",
            Self::GroupsOk => "groups-ok",
            Self::GroupsUnauthorized => "groups-unauthorized",
            Self::HttpMethodOk => "http-method-ok",
            Self::HttpMethodUnauthorized => "http-method-unauthorized",
            Self::HttpPathOk => "http-path-ok",
            Self::HttpPathUnauthorized => "http-path-unauthorized",
            Self::InvalidClientCertificate => "invalid-client-certificate",
            Self::NonCorsRequest => "non-cors-request",
            Self::NonPomeriumRoute => "non-pomerium-route",
            Self::PomeriumRoute => "pomerium-route",
            Self::RecordOk => "record-ok",
            Self::RecordUnauthorized => "record-unauthorized",
            Self::Reject => "reject",
            Self::RouteNotFound => "route-not-found",
            Self::SourceIpOk => "source-ip-ok",
            Self::SourceIpUnauthorized => "source-ip-unauthorized",
            Self::TimeOfDayOk => "time-of-day-ok",
            Self::TimeOfDayUnauthorized => "time-of-day-unauthorized",
            Self::UserOk => "user-ok",
            Self::UserUnauthenticated => "user-unauthenticated",
            Self::UserUnauthorized => "user-unauthorized",
            Self::ValidClientCertificate => "valid-client-certificate",
        }
    }

    const fn bit(self) -> u64 {
        1 << self as u32
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A sorted set of reasons. Copying it costs nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Reasons(u64);

impl Reasons {
    pub const EMPTY: Self = Self(0);

    pub fn insert(&mut self, reason: Reason) {
        self.0 |= reason.bit();
    }

    pub const fn contains(self, reason: Reason) -> bool {
        self.0 & reason.bit() != 0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// In the alphabetical order of the texts.
    pub fn iter(self) -> impl Iterator<Item = Reason> {
        Reason::ALL
            .into_iter()
            .filter(move |reason| self.contains(*reason))
    }
}

impl From<Reason> for Reasons {
    fn from(reason: Reason) -> Self {
        Self(reason.bit())
    }
}

impl FromIterator<Reason> for Reasons {
    fn from_iter<I: IntoIterator<Item = Reason>>(reasons: I) -> Self {
        let mut set = Self::EMPTY;
        for reason in reasons {
            set.insert(reason);
        }
        set
    }
}

impl fmt::Display for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, reason) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            f.write_str(reason.as_str())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_complete_sorted_and_in_the_order_of_the_bits() {
        for pair in Reason::ALL.windows(2) {
            assert!(pair[0].as_str() < pair[1].as_str(), "{pair:?}");
            assert_eq!(pair[0] as u32 + 1, pair[1] as u32);
        }
        assert_eq!(Reason::ALL[0] as u32, 0);
        assert_eq!(
            Reason::ValidClientCertificate as usize + 1,
            Reason::ALL.len()
        );
    }

    #[test]
    fn a_set_lists_each_reason_once_and_sorted() {
        let set: Reasons = [Reason::UserOk, Reason::Accept, Reason::UserOk]
            .into_iter()
            .collect();
        assert_eq!(set.to_string(), "accept, user-ok");
        assert!(set.contains(Reason::Accept) && !set.contains(Reason::Reject));
        assert!(Reasons::EMPTY.is_empty() && Reasons::EMPTY.to_string().is_empty());
    }
}
