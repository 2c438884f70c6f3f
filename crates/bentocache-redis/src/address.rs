//! Addresses that servers announce, and the addresses at which this process reaches them.

use std::collections::HashMap;

use bentocache_driver::DriverError;

use crate::error;

type Address = (String, u16);

/// Maps announced addresses to reachable ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AddressMap {
    map: HashMap<Address, Address>,
    /// The first text that is not an address.
    wrong: Option<String>,
}

impl AddressMap {
    pub(crate) fn new<A: AsRef<str>, R: AsRef<str>>(
        pairs: impl IntoIterator<Item = (A, R)>,
    ) -> Self {
        let mut made = Self::default();
        for (announced, reachable) in pairs {
            match (parse(announced.as_ref()), parse(reachable.as_ref())) {
                (Some(announced), Some(reachable)) => drop(made.map.insert(announced, reachable)),
                (None, _) => drop(made.wrong.get_or_insert(announced.as_ref().to_owned())),
                (_, None) => drop(made.wrong.get_or_insert(reachable.as_ref().to_owned())),
            }
        }
        made
    }

    /// # Errors
    /// If a text is not an address.
    pub(crate) fn check(&self) -> Result<(), DriverError> {
        match &self.wrong {
            None => Ok(()),
            Some(wrong) => Err(error::config(format_args!(
                "node_address_map has {wrong:?}, which is not an address; write host:port, without \
                 redis://"
            ))),
        }
    }

    /// The address at which this process reaches the server with this announced address.
    pub(crate) fn reachable(&self, host: &str, port: u16) -> Address {
        let announced = (host.to_owned(), port);
        self.map.get(&announced).cloned().unwrap_or(announced)
    }

    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&Address, &Address)> {
        self.map.iter()
    }
}

fn parse(text: &str) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_host = !host.is_empty() && !host.contains(['/', '@']);
    is_host.then_some(())?;
    Some((host.to_owned(), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_mapped() {
        let map = AddressMap::new([("10.0.0.1:6379", "nat:7001"), ("[::1]:1", "::2:3")]);
        assert_eq!(map.check().map_err(|error| error.to_string()), Ok(()));
        assert_eq!(map.reachable("10.0.0.1", 6379), ("nat".to_owned(), 7001));
        assert_eq!(map.reachable("::1", 1), ("::2".to_owned(), 3));
        assert_eq!(map.reachable("10.0.0.1", 6380), ("10.0.0.1".to_owned(), 6380));
    }

    #[test]
    fn what_is_no_address_is_named() {
        for wrong in ["", "host", "host:", ":1", "host:x", "redis://host:1", "host:70000"] {
            for pair in [(wrong, "a:1"), ("a:1", wrong)] {
                let error = AddressMap::new([pair]).check().unwrap_err().to_string();
                assert!(error.contains(&format!("{wrong:?}")) && error.contains("host:port"));
            }
        }
    }
}
