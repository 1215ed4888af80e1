//! Ping. Often sends `mail` instead of `email`, which is put right for every provider.

use super::{Flavor, PLAIN};

pub(crate) const FLAVOR: Flavor = Flavor {
    name: "ping",
    ..PLAIN
};
