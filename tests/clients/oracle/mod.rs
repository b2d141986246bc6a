//! Comparison of mayfly with a released Firecracker: both get the same requests, and each difference is in a reviewed list.
//!
//! | module | subject |
//! |---|---|
//! | [`process`] | a VMM process with an API socket |
//! | [`outcome`] | observable effect of a request, as text |
//! | [`case`] | requests, and their execution by one VMM |
//! | [`fields`] | bodies with valid and invalid values of each field |
//! | [`guest`] | requests while a guest runs |
//! | [`list`] | the reviewed list of differences |

pub mod case;
pub mod fields;
#[allow(dead_code, reason = "only the emulated host runs guests")]
pub mod guest;
pub mod list;
pub mod outcome;
pub mod process;

use case::{Case, Observation, run};
use process::Vmm;

/// Runs `cases` on both VMMs.
pub fn observe(cases: &[Case]) -> Vec<Difference> {
    let firecracker = run(Vmm::Firecracker, cases);
    let mayfly = run(Vmm::Mayfly, cases);
    compare(firecracker, mayfly)
}

/// A request that the VMMs treat differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Case and request.
    pub request: String,
    /// Outcome of Firecracker.
    pub firecracker: String,
    /// Outcome of mayfly.
    pub mayfly: String,
}

impl Difference {
    /// Returns the difference as one line of JSON.
    #[allow(dead_code, reason = "only the emulated host prints differences")]
    pub fn to_line(&self) -> String {
        serde_json::json!([self.request, self.firecracker, self.mayfly]).to_string()
    }

    /// Parses [`Self::to_line`].
    #[allow(dead_code, reason = "only the emulated host prints differences")]
    pub fn from_line(line: &str) -> Self {
        let [request, firecracker, mayfly] = serde_json::from_str(line).unwrap();
        Self {
            request,
            firecracker,
            mayfly,
        }
    }
}

/// Returns the differences of two observations of the same requests.
pub fn compare(firecracker: Vec<Observation>, mayfly: Vec<Observation>) -> Vec<Difference> {
    assert_eq!(firecracker.len(), mayfly.len(), "the VMMs got different requests");
    let pairs = firecracker.into_iter().zip(mayfly);
    let differences = pairs.filter_map(|(firecracker, mayfly)| {
        assert_eq!(firecracker.request, mayfly.request);
        (firecracker.outcome != mayfly.outcome).then_some(Difference {
            request: firecracker.request,
            firecracker: firecracker.outcome,
            mayfly: mayfly.outcome,
        })
    });
    differences.collect()
}
