//! Seeded mutator: the same seed yields the same inputs.

/// Generator of pseudorandom numbers, SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `limit`, or 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let number = self.next() % (limit.max(1) as u64);
        usize::try_from(number).expect("the number is below a usize")
    }
}

/// Integers at limits of types, pages and sectors.
const INTEGERS: [u64; 20] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x1ff,
    0x200,
    0xfff,
    0x1000,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 63,
    u64::MAX,
];

/// Source of inputs: changed copies of a corpus.
pub struct Mutator<'a> {
    random: Random,
    corpus: &'a [Vec<u8>],
    dictionary: &'a [&'a [u8]],
    max_length: usize,
}

impl<'a> Mutator<'a> {
    pub fn new(seed: u64, corpus: &'a [Vec<u8>], dictionary: &'a [&'a [u8]], max_length: usize) -> Self {
        Self {
            random: Random::new(seed),
            corpus,
            dictionary,
            max_length,
        }
    }

    /// Returns the next input: an element of the corpus with 1 to 16 changes, few most often.
    pub fn next(&mut self) -> Vec<u8> {
        let mut bytes = self.pick();
        let shift = self.random.below(5);
        for _ in 0..=self.random.below(1 << shift) {
            self.change(&mut bytes);
        }
        bytes.truncate(self.max_length);
        bytes
    }

    fn pick(&mut self) -> Vec<u8> {
        let index = self.random.below(self.corpus.len());
        self.corpus.get(index).cloned().unwrap_or_default()
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.random.below(bytes.len());
        let kind = self.random.below(9);
        if bytes.is_empty() && kind < 6 {
            return bytes.push(self.random.next().to_le_bytes()[0]);
        }
        match kind {
            0 => bytes[at] ^= 1 << self.random.below(8),
            1 => bytes[at] = self.random.next().to_le_bytes()[0],
            2 => self.write_integer(bytes, at),
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..at + self.length(bytes.len() - at))),
            5 => {
                // A repetition.
                let part = bytes[at..at + self.length(bytes.len() - at)].to_vec();
                let target = self.random.below(bytes.len() + 1);
                bytes.splice(target..target, part);
            }
            6 => {
                let word = self.dictionary.get(self.random.below(self.dictionary.len()));
                bytes.splice(at..at, word.copied().unwrap_or_default().iter().copied());
            }
            7 => {
                let count = self.random.below(8) + 1;
                let new: Vec<u8> = (0..count).map(|_| self.random.next().to_le_bytes()[0]).collect();
                bytes.splice(at..at, new);
            }
            _ => self.splice(bytes, at),
        }
    }

    /// Overwrites bytes from `at` by an integer of interest, or by the present one plus a small number.
    fn write_integer(&mut self, bytes: &mut [u8], at: usize) {
        let width = (1 << self.random.below(4)).min(bytes.len() - at);
        let place = &mut bytes[at..at + width];
        let value = match self.random.below(2) {
            0 => INTEGERS[self.random.below(INTEGERS.len())],
            _ => {
                let mut present = [0; 8];
                present[..width].copy_from_slice(place);
                let distance = self.random.next() % 33;
                u64::from_le_bytes(present)
                    .wrapping_add(distance)
                    .wrapping_sub(16)
            }
        };
        place.copy_from_slice(&value.to_le_bytes()[..width]);
    }

    /// Replaces all bytes from `at` by the end of another element of the corpus.
    fn splice(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let other = self.pick();
        let from = self.random.below(other.len());
        bytes.truncate(at);
        bytes.extend(&other[from..]);
    }

    /// Returns a length from 1 to `limit`, short most often.
    fn length(&mut self, limit: usize) -> usize {
        let short = 1 << self.random.below(8);
        self.random.below(limit.min(short)) + 1
    }
}
