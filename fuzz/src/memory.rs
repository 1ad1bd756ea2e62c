//! Mutated inputs, and the memory of the process. Only tests of towline-wire and towline-tls include this file.

/// Resident memory of this process, if the system reports it.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1_024)
}

/// A copy of `good` with one to four changes.
pub fn mutated(random: &mut fastrand::Rng, good: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=random.usize(..4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.usize(..bytes.len());
        match random.u8(..8) {
            0..4 => bytes[at] ^= 1 << random.u8(..8),
            4..6 => bytes[at] = random.u8(..),
            6 => bytes.truncate(at),
            _ => bytes.insert(at, random.u8(..)),
        }
    }
    bytes
}

/// Up to `below` random bytes.
pub fn random_bytes(random: &mut fastrand::Rng, below: usize) -> Vec<u8> {
    let length = random.usize(..below);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}
