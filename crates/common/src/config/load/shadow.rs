//! Finds the earlier route that takes all requests of a later one, without comparing every two.

use std::collections::HashMap;

use regex::Regex;

use super::super::route::{FromScheme, PathMatcher, Route};

/// The routes before the present one, by what they answer. Numbers are their places in the file.
#[derive(Default)]
pub struct Earlier<'r> {
    hosts: HashMap<Hosts<'r>, Paths<'r>>,
    /// By each of their authorities.
    tunnels: HashMap<&'r str, Vec<(usize, &'r Route)>>,
}

#[derive(PartialEq, Eq, Hash)]
struct Hosts<'r> {
    host: &'r str,
    port: Option<u16>,
    also: Option<&'r str>,
}

/// The first route with each condition.
#[derive(Default)]
struct Paths<'r> {
    any: Option<usize>,
    prefixes: HashMap<&'r str, usize>,
    exacts: HashMap<&'r str, usize>,
    regexes: HashMap<&'r str, (usize, &'r Regex)>,
}

impl<'r> Earlier<'r> {
    /// Takes the next route in, and tells the first one before it that takes all its requests.
    pub fn next(&mut self, index: usize, route: &'r Route) -> Option<usize> {
        match &route.from.scheme {
            FromScheme::Tcp { authorities } => {
                let first = self.tunnels.get(authorities.first()?.as_str());
                let covering = first.into_iter().flatten().find(|(_, earlier)| {
                    tunnels_of(earlier, authorities) && covers(&earlier.matcher, &route.matcher)
                });
                let covering = covering.map(|(index, _)| *index);
                for authority in authorities {
                    let known = self.tunnels.entry(authority.as_str()).or_default();
                    known.push((index, route));
                }
                covering
            }
            FromScheme::Http | FromScheme::Https => {
                let paths = self.hosts.entry(Hosts {
                    host: &route.from.host,
                    port: route.from.port,
                    also: route.from.also.as_deref(),
                });
                let paths = paths.or_default();
                let covering = paths.covering(&route.matcher);
                paths.add(index, &route.matcher);
                covering
            }
        }
    }
}

fn tunnels_of(earlier: &Route, authorities: &[String]) -> bool {
    match &earlier.from.scheme {
        FromScheme::Tcp { authorities: all } => authorities.iter().all(|it| all.contains(it)),
        FromScheme::Http | FromScheme::Https => false,
    }
}

fn covers(earlier: &PathMatcher, later: &PathMatcher) -> bool {
    let mut paths = Paths::default();
    paths.add(0, earlier);
    paths.covering(later).is_some()
}

impl<'r> Paths<'r> {
    fn add(&mut self, index: usize, matcher: &'r PathMatcher) {
        match matcher {
            PathMatcher::Any => {
                self.any.get_or_insert(index);
            }
            PathMatcher::Prefix(path) => {
                self.prefixes.entry(path).or_insert(index);
            }
            PathMatcher::Exact(path) => {
                self.exacts.entry(path).or_insert(index);
            }
            PathMatcher::Regex(regex) => {
                self.regexes.entry(regex.as_str()).or_insert((index, regex));
            }
        }
    }

    /// The first that matches whatever `later` does.
    fn covering(&self, later: &PathMatcher) -> Option<usize> {
        let by_path = match later {
            PathMatcher::Any => None,
            PathMatcher::Prefix(path) => self.prefix_of(path),
            PathMatcher::Exact(path) => {
                let same = self.exacts.get(path.as_str()).copied();
                let regexes = self.regexes.values();
                let matching = regexes
                    .filter(|(_, regex)| regex.is_match(path))
                    .map(|(index, _)| *index);
                matching.chain(same).chain(self.prefix_of(path)).min()
            }
            PathMatcher::Regex(regex) => self.regexes.get(regex.as_str()).map(|(index, _)| *index),
        };
        by_path.into_iter().chain(self.any).min()
    }

    fn prefix_of(&self, path: &str) -> Option<usize> {
        let beginnings = (0..=path.len()).filter_map(|end| path.get(..end));
        beginnings
            .filter_map(|beginning| self.prefixes.get(beginning).copied())
            .min()
    }
}
