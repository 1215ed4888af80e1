//! GitLab, the public one or an own.

use super::{Flavor, ONLINE, PLAIN};

pub(crate) const FLAVOR: Flavor = Flavor {
    name: "gitlab",
    default_url: Some("https://gitlab.com"),
    scopes: |_| ONLINE,
    ..PLAIN
};
