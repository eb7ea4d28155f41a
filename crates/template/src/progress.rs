//! How far a build is, from what its programs print.

/// Who is told how a build goes.
pub trait Progress: Send + Sync {
    /// The build has come to `fraction` (0 to 1, never falling) and is at `what`.
    fn step(&self, fraction: f32, what: &str);
    /// The build printed a line.
    fn line(&self, text: &str);
}

/// A phase of the base build: the line that begins it, what it is called, and how much of the whole
/// is done when it begins, as measured.
struct Phase {
    begins: &'static str,
    what: &'static str,
    from: f32,
}

const PHASES: [Phase; 8] = [
    Phase { begins: "I: running apt-get update", what: "reading package lists", from: 0.0 },
    Phase { begins: "I: downloading packages", what: "downloading packages", from: 0.03 },
    Phase { begins: "I: extracting archives", what: "unpacking the core system", from: 0.06 },
    Phase { begins: "I: installing essential", what: "installing the core system", from: 0.22 },
    Phase { begins: "I: installing remaining", what: "installing packages", from: 0.40 },
    Phase { begins: "atoll: installing Node", what: "installing Node", from: 0.86 },
    Phase { begins: "atoll: setting up", what: "setting up users and shells", from: 0.94 },
    Phase { begins: "I: cleaning package lists", what: "cleaning up", from: 0.96 },
];

/// Estimates the fraction done, line by line.
#[derive(Default)]
pub(crate) struct Estimate {
    phase: usize,
    /// Packages that the phase installs; each is unpacked and then set up.
    packages: u32,
    steps: u32,
}

impl Estimate {
    /// Takes a line in; returns the fraction done and the name of the phase if the line moved it.
    pub(crate) fn line(&mut self, line: &str) -> Option<(f32, &'static str)> {
        // Phases only go forward: the same words may turn up in a package's own output.
        let begun = PHASES[self.phase..].iter().position(|phase| line.starts_with(phase.begins));
        if let Some(ahead) = begun {
            self.phase += ahead;
            self.steps = 0;
        } else if line.starts_with("Unpacking ") || line.starts_with("Setting up ") {
            self.steps += 1;
        } else if let Some(count) = newly_installed(line) {
            self.packages = count;
            return None;
        } else {
            return None;
        }
        Some((self.fraction(), PHASES[self.phase].what))
    }

    fn fraction(&self) -> f32 {
        let from = PHASES[self.phase].from;
        let to = PHASES.get(self.phase + 1).map_or(1.0, |next| next.from);
        let all = (2 * self.packages).max(1) as f32;
        from + (to - from) * (self.steps as f32 / all).min(1.0)
    }
}

/// `0 upgraded, 69 newly installed, 0 to remove and 0 not upgraded.`
fn newly_installed(line: &str) -> Option<u32> {
    line.split(", ").find_map(|part| part.strip_suffix(" newly installed"))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fraction_rises_through_a_build_and_never_falls() {
        let mut output: Vec<String> = Vec::new();
        for (phase, packages) in PHASES.iter().zip([0, 69, 0, 69, 167, 0, 0, 0]) {
            output.push(format!("{}...", phase.begins));
            output.push(format!("0 upgraded, {packages} newly installed, 0 to remove"));
            output.extend((0..packages).map(|n| format!("Unpacking package-{n} (1.0) ...")));
            output.extend((0..packages).map(|n| format!("Setting up package-{n} (1.0) ...")));
        }
        // A trigger that runs late, and a package that talks like the installer.
        output.push("Setting up package-0 (1.0) ...".into());
        output.push("I: downloading packages".into());
        let mut estimate = Estimate::default();
        let fractions: Vec<f32> =
            output.iter().filter_map(|line| Some(estimate.line(line)?.0)).collect();
        assert!(fractions.is_sorted(), "{fractions:?}");
        assert!(fractions.iter().all(|fraction| (0.0..=1.0).contains(fraction)));
        assert!(fractions.len() > 400);
        assert!(fractions[fractions.len() - 1] > 0.95);
    }

    #[test]
    fn other_output_moves_nothing() {
        let mut estimate = Estimate::default();
        assert_eq!(estimate.line("Get:1 a package"), None);
        assert_eq!(estimate.line(""), None);
    }
}
