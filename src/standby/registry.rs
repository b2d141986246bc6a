//! Instances in memory: states, the names and addresses that they claim, order by identifier.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::config::{Config, Link};
use super::links::Links;
use super::live::Live;

/// State of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No process; a frame or a request wakes it.
    Suspended,
    /// Waits for its turn, or its process loads the snapshot.
    Waking,
    /// The guest runs.
    Running,
    /// The guest is being suspended.
    Suspending,
    /// No process; only a request wakes it.
    Failed,
}

impl State {
    /// All states.
    pub const ALL: [Self; 5] = [
        Self::Suspended,
        Self::Waking,
        Self::Running,
        Self::Suspending,
        Self::Failed,
    ];

    /// Returns the name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Suspended => "suspended",
            Self::Waking => "waking",
            Self::Running => "running",
            Self::Suspending => "suspending",
            Self::Failed => "failed",
        }
    }
}

/// Origin of the next wake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// The last complete snapshot.
    #[default]
    Latest,
    /// The registered snapshot, after a crash with `on_crash` discard.
    Registered,
    /// An image, after a crash with `on_crash` boot.
    Boot,
}

/// Place of an instance. A place that is used again has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Index in the registry.
    pub index: u32,
    /// Number of instances that have had this index.
    pub generation: u32,
}

/// A registered instance.
#[derive(Debug)]
pub struct Entry {
    /// Identifier.
    pub id: Box<str>,
    /// Configuration as in the journal, which takes a fraction of the memory of the parsed one.
    pub config: Box<str>,
    /// State.
    pub state: State,
    /// Reason of the state.
    pub reason: Box<str>,
    /// Milliseconds since 1970 of the last change of the state.
    pub since_ms: u64,
    /// Number of wakes.
    pub wakes: u32,
    /// Memory of its last process in KiB.
    pub memory_kib: u32,
    /// Origin of the next wake.
    pub origin: Origin,
    /// The journal has a failure of the instance.
    pub has_failure: bool,
    /// It has interfaces.
    pub has_links: bool,
    /// It has taps of its own.
    pub has_taps: bool,
    /// The directory of its snapshots is not in the state directory.
    pub has_directory: bool,
    /// Its interfaces on the host.
    pub links: Links,
    /// Wake and process; none while it is suspended or failed.
    pub live: Option<Box<Live>>,
}

impl Entry {
    /// Changes the state.
    fn set(&mut self, state: State, reason: &str) {
        self.state = state;
        self.reason = reason.into();
        self.since_ms = now_ms();
    }

    /// Parses the configuration.
    ///
    /// # Errors
    /// Fails for a configuration of another version of the program.
    pub fn parse(&self) -> Result<Config, String> {
        Config::parse_compact(&self.config)
    }

    /// Returns files with the first frames of its wake, by the identifiers of their interfaces.
    ///
    /// # Errors
    /// Fails without memory or descriptors.
    pub fn frame_files(&self) -> io::Result<Vec<(&str, OwnedFd)>> {
        self.live
            .as_ref()
            .map_or_else(|| Ok(Vec::new()), |live| live.frames.to_files())
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.as_ref().map_or(0, Duration::as_millis)).unwrap_or(0)
}

/// A place and its number of past instances.
#[derive(Debug, Default)]
struct Place {
    generation: u32,
    entry: Option<Entry>,
}

/// All instances.
#[derive(Debug, Default)]
pub struct Registry {
    places: Vec<Place>,
    free: Vec<u32>,
    ids: BTreeMap<Box<str>, u32>,
    claims: BTreeMap<Box<str>, u32>,
    counts: [usize; State::ALL.len()],
}

impl Registry {
    /// Adds an instance that is suspended.
    ///
    /// # Errors
    /// A text that names the other instance with the same identifier, tap or address; the registry is unchanged then.
    pub fn add(&mut self, id: &str, config: &Config, text: String, reason: &str) -> Result<Key, String> {
        if self.ids.contains_key(id) {
            return Err(format!(
                "cannot register {id:?}: the identifier is in use; delete that instance first"
            ));
        }
        let claims = claims(config);
        self.check_claims(id, &claims)?;
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        self.ids.insert(id.into(), index);
        self.claims
            .extend(claims.into_iter().map(|claim| (claim.into_boxed_str(), index)));
        let place = &mut self.places[index as usize];
        place.generation = (place.generation + 1) & 0x0fff_ffff;
        place.entry = Some(Entry {
            id: id.into(),
            config: text.into(),
            state: State::Suspended,
            reason: reason.into(),
            since_ms: now_ms(),
            wakes: 0,
            memory_kib: 0,
            origin: Origin::Latest,
            has_failure: false,
            has_links: !config.interfaces.is_empty(),
            has_taps: config
                .interfaces
                .iter()
                .any(|interface| matches!(interface.link, Link::Tap(_))),
            has_directory: config.suspend_to.is_some() || config.jail.is_some(),
            links: Links::default(),
            live: None,
        });
        self.counts[State::Suspended as usize] += 1;
        let generation = place.generation;
        Ok(Key { index, generation })
    }

    /// Fails if another instance than `id` has one of `claims`.
    fn check_claims(&self, id: &str, claims: &[String]) -> Result<(), String> {
        for claim in claims {
            let holder = self
                .claims
                .get(claim.as_str())
                .map(|index| &self.places[*index as usize]);
            if let Some(holder) = holder.and_then(|place| place.entry.as_ref()) {
                let holder = &holder.id;
                return Err(format!(
                    "cannot register {id:?}: instance {holder:?} has {claim}; choose another one"
                ));
            }
        }
        let mut sorted: Vec<&String> = claims.iter().collect();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!(
                "cannot register {id:?}: two interfaces have {}; choose another one",
                pair[0]
            )),
            None => Ok(()),
        }
    }

    /// Removes an instance.
    pub fn remove(&mut self, key: Key) -> Option<Entry> {
        self.get(key)?;
        let entry = self.places[key.index as usize].entry.take()?;
        self.ids.remove(&entry.id);
        if let Ok(config) = entry.parse() {
            for claim in claims(&config) {
                self.claims.remove(claim.as_str());
            }
        }
        self.counts[entry.state as usize] -= 1;
        self.free.push(key.index);
        Some(entry)
    }

    /// Returns the instance at `key`.
    pub fn get(&self, key: Key) -> Option<&Entry> {
        let place = self.places.get(key.index as usize)?;
        place
            .entry
            .as_ref()
            .filter(|_| place.generation == key.generation)
    }

    /// Returns the instance at `key`.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut Entry> {
        let place = self.places.get_mut(key.index as usize)?;
        let generation = place.generation;
        place.entry.as_mut().filter(|_| generation == key.generation)
    }

    /// Returns the key of the instance `id`.
    pub fn find(&self, id: &str) -> Option<Key> {
        let index = *self.ids.get(id)?;
        let generation = self.places.get(index as usize)?.generation;
        Some(Key { index, generation })
    }

    /// Returns the key of the instance at `index`.
    pub fn key_at(&self, index: u32) -> Option<Key> {
        let place = self.places.get(index as usize)?;
        let generation = place.generation;
        place.entry.as_ref().map(|_| Key { index, generation })
    }

    /// Changes the state of an instance.
    pub fn set(&mut self, key: Key, state: State, reason: &str) {
        let Some(entry) = self.get_mut(key) else { return };
        let before = std::mem::replace(&mut entry.state, state);
        entry.set(state, reason);
        self.counts[before as usize] -= 1;
        self.counts[state as usize] += 1;
    }

    /// Changes the reason of the state.
    pub fn set_reason(&mut self, key: Key, reason: &str) {
        if let Some(entry) = self.get_mut(key) {
            entry.reason = reason.into();
        }
    }

    /// Returns at most `limit` keys in the order of the identifiers, after the identifier `after`.
    pub fn page(&self, after: Option<&str>, limit: usize, state: Option<State>) -> Vec<Key> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.ids.range::<str, _>((start, Bound::Unbounded));
        let keys = range.filter_map(|(_, index)| {
            let place = &self.places[*index as usize];
            let is_shown =
                state.is_none_or(|state| place.entry.as_ref().is_some_and(|entry| entry.state == state));
            let generation = place.generation;
            is_shown.then_some(Key {
                index: *index,
                generation,
            })
        });
        keys.take(limit).collect()
    }

    /// Returns the number of instances in `state`.
    pub fn count(&self, state: State) -> usize {
        self.counts[state as usize]
    }

    /// Returns the number of instances.
    pub fn len(&self) -> usize {
        self.ids.len()
    }
}

/// Returns the names and addresses that no second instance may have.
pub fn claims(config: &Config) -> Vec<String> {
    let mut claims = Vec::new();
    for interface in &config.interfaces {
        let place = match &interface.link {
            Link::Tap(name) => {
                claims.push(format!("tap {name}"));
                String::new()
            }
            Link::Network(id) => format!(" of network {id}"),
        };
        claims.extend(interface.ip.map(|ip| format!("ip {ip}{place}")));
        claims.extend(interface.ip6.map(|ip| format!("ip {ip}{place}")));
        // In a shared network each instance has a link of its own.
        if let (Link::Tap(_), Some(mac)) = (&interface.link, interface.mac) {
            claims.push(format!("mac {mac}"));
        }
    }
    claims.extend(
        config
            .suspend_to
            .iter()
            .map(|path| format!("suspend_path {}", path.display())),
    );
    claims
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Config, Key, Registry, State};

    fn add(registry: &mut Registry, id: &str, more: Value) -> Result<Key, String> {
        let mut body = json!({"snapshot_path": "/s"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let (config, text) = Config::parse(body.to_string().as_bytes()).unwrap();
        registry.add(id, &config, text, "registered")
    }

    fn tap(name: &str, ip: &str) -> Value {
        json!({"network_interfaces": [{"iface_id": "e", "host_dev_name": name, "ip": ip}]})
    }

    fn network(id: &str, ip: &str) -> Value {
        json!({"network_interfaces": [{"iface_id": "e", "network_id": id, "ip": ip}]})
    }

    #[test]
    fn conflict_names_the_other_instance() {
        let mut registry = Registry::default();
        add(&mut registry, "a", tap("tap0", "10.0.0.1")).unwrap();
        for (more, text) in [
            (tap("tap0", "10.0.0.2"), "instance \"a\" has tap tap0"),
            (tap("tap1", "10.0.0.1"), "instance \"a\" has ip 10.0.0.1"),
        ] {
            let error = add(&mut registry, "b", more).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        assert!(
            add(&mut registry, "a", json!({}))
                .unwrap_err()
                .contains("identifier is in use")
        );
        let twice = json!({"network_interfaces": [
            {"iface_id": "e", "network_id": "n", "ip": "10.0.0.9"},
            {"iface_id": "f", "network_id": "n", "ip": "10.0.0.9"},
        ]});
        assert!(
            add(&mut registry, "c", twice)
                .unwrap_err()
                .contains("two interfaces have ip 10.0.0.9 of network n")
        );
        assert_eq!(registry.len(), 1);
        // Another network is another place.
        add(&mut registry, "b", network("n", "10.0.0.1")).unwrap();
        add(&mut registry, "c", network("m", "10.0.0.1")).unwrap();
        let key = registry.find("c").unwrap();
        assert_eq!(registry.key_at(key.index), Some(key));
    }

    #[test]
    fn removed_instance_frees_all_it_claims() {
        let mut registry = Registry::default();
        let first = add(&mut registry, "a", tap("tap0", "10.0.0.1")).unwrap();
        registry.remove(first).unwrap();
        let second = add(&mut registry, "b", tap("tap0", "10.0.0.1")).unwrap();
        assert_eq!(first.index, second.index);
        assert!(registry.get(first).is_none() && registry.remove(first).is_none());
        registry.set(first, State::Failed, "late");
        assert_eq!(registry.get(second).unwrap().state, State::Suspended);
    }

    #[test]
    fn pages_follow_the_identifiers() {
        let mut registry = Registry::default();
        for id in ["c", "a", "e", "b", "d"] {
            add(&mut registry, id, json!({})).unwrap();
        }
        let failed = registry.find("d").unwrap();
        registry.set(failed, State::Failed, "x");
        let page = |after, limit, state| -> String {
            let keys = registry.page(after, limit, state);
            keys.iter().map(|key| &*registry.get(*key).unwrap().id).collect()
        };
        assert_eq!(page(None, 2, None), "ab");
        assert_eq!(page(Some("b"), 9, None), "cde");
        assert_eq!(page(Some("bb"), 1, None), "c");
        assert_eq!(page(None, 9, Some(State::Failed)), "d");
        assert_eq!(
            (registry.count(State::Failed), registry.count(State::Suspended)),
            (1, 4)
        );
    }
}
