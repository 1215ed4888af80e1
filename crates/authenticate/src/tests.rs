//! The service behind its router, with a provider and a databroker inside the test.

mod c_cases;
mod databroker;
mod idp;
mod listener;
mod security;
mod support;
