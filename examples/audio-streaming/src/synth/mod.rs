//! The made programme: a tune (plucked strings, soft pad, drums) and speech-like sound between.
//!
//! Twelve bars of 2.4 s (100 beats a minute): eight of tune and four in which somebody speaks
//! over the pad. The text of thesis §4.6 has "a prerecorded audio file"; this is one for those
//! who have none.
//!
//! Invariant: the same recipe gives the same samples on every machine, so that a server started
//! anew streams what the old one did: no clock, no system randomness, no `libm` (see `math.rs`).

mod drums;
mod math;
mod noise;
mod pad;
mod pluck;
mod speech;
mod tune;

use noise::Noise;

/// Length of the made programme in seconds; longer streams repeat it.
pub const BODY_SECONDS: f64 = tune::BARS as f64 * tune::BAR_SECONDS;

/// Loudest sample of the finished programme (full scale is 1): 3 dB below clipping.
pub const PEAK: f32 = 0.7;

/// What to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Frames per second, 8 000 to 48 000.
    pub sample_rate: u32,
    /// Chooses melody, accompaniment and words.
    pub seed: u64,
}

/// Makes the programme: mono samples of [`BODY_SECONDS`] between -[`PEAK`] and [`PEAK`].
pub fn make(recipe: Recipe) -> Vec<f32> {
    let rate = recipe.sample_rate as f32;
    let mut tune = Track::new(rate, BODY_SECONDS as f32);
    let mut speech = Track::new(rate, BODY_SECONDS as f32);
    tune::perform(&mut tune, &mut Noise::new(recipe.seed));
    for (begin, end) in tune::SPOKEN_BARS {
        let seed = recipe.seed ^ (0x5eec << 16) ^ begin as u64;
        let from = begin as f32 * tune::BAR_SECONDS as f32 + 0.15;
        let to = end as f32 * tune::BAR_SECONDS as f32 - 0.25;
        speech::speak(&mut speech, from, to, &mut Noise::new(seed));
    }
    tune.remove_dc();
    speech.remove_dc();
    tune.scale_to_peak(0.8);
    speech.scale_to_peak(0.6);
    for (sample, voice) in tune.samples.iter_mut().zip(&speech.samples) {
        *sample = soft_limit(*sample + voice);
    }
    tune.fade_ends(0.03);
    tune.scale_to_peak(PEAK);
    tune.samples
}

/// Bends loud peaks so that the rest can be louder; nearly straight below 0.5.
fn soft_limit(x: f32) -> f32 {
    x / (1.0 + (x * x) * (x * x)).sqrt().sqrt()
}

/// Mono samples on which instruments write by time; what lies past the end is dropped.
struct Track {
    rate: f32,
    samples: Vec<f32>,
}

impl Track {
    fn new(rate: f32, seconds: f32) -> Self {
        Self { rate, samples: vec![0.0; (rate * seconds).round() as usize] }
    }

    /// Number of samples in `seconds`.
    fn len_of(&self, seconds: f32) -> usize {
        (seconds * self.rate).max(0.0) as usize
    }

    /// The samples from `seconds` on, at most `len` of them.
    fn window(&mut self, seconds: f32, len: usize) -> &mut [f32] {
        let from = self.len_of(seconds).min(self.samples.len());
        let to = from.saturating_add(len).min(self.samples.len());
        &mut self.samples[from..to]
    }

    /// One-pole high-pass at some 20 Hz.
    fn remove_dc(&mut self) {
        let keep = math::exp(-math::TAU * 20.0 / self.rate);
        let (mut last_in, mut last_out) = (0.0, 0.0);
        for sample in &mut self.samples {
            last_out = *sample - last_in + keep * last_out;
            last_in = *sample;
            *sample = last_out;
        }
    }

    fn scale_to_peak(&mut self, peak: f32) {
        let loudest = self.samples.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        if loudest > 0.0 {
            let gain = peak / loudest;
            self.samples.iter_mut().for_each(|x| *x *= gain);
        }
    }

    /// So that the end of the programme meets its beginning without a click.
    fn fade_ends(&mut self, seconds: f32) {
        let len = self.len_of(seconds).min(self.samples.len() / 2);
        let end = self.samples.len();
        for i in 0..len {
            let gain = i as f32 / len as f32;
            self.samples[i] *= gain;
            self.samples[end - 1 - i] *= gain;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rms(samples: &[f32]) -> f32 {
        (samples.iter().map(|x| x * x).sum::<f32>() / samples.len() as f32).sqrt()
    }

    #[test]
    fn programme_is_loud_enough_never_clips_and_has_no_dc() {
        for sample_rate in [8_000, 16_000] {
            let made = make(Recipe { sample_rate, seed: 1 });
            assert_eq!(made.len(), (BODY_SECONDS * f64::from(sample_rate)).round() as usize);
            assert!(made.iter().all(|x| x.is_finite() && x.abs() <= PEAK + 1e-6));
            let level = rms(&made);
            assert!((0.06..0.3).contains(&level), "level {level}");
            let mean = made.iter().sum::<f32>() / made.len() as f32;
            assert!(mean.abs() < 1e-3, "mean {mean}");
        }
    }

    #[test]
    fn no_second_is_silent() {
        let made = make(Recipe { sample_rate: 8_000, seed: 1 });
        for (second, samples) in made.chunks(8_000).enumerate() {
            assert!(rms(samples) > 0.01, "second {second}: {}", rms(samples));
        }
    }

    #[test]
    fn a_seed_gives_the_same_samples_always_and_another_seed_others() {
        let make = |seed| make(Recipe { sample_rate: 8_000, seed });
        assert!(make(7) == make(7));
        assert!(make(7) != make(8));
    }

    #[test]
    fn ends_meet_without_click() {
        let made = make(Recipe { sample_rate: 8_000, seed: 3 });
        assert!(made[0].abs() < 0.01 && made[made.len() - 1].abs() < 0.01);
    }
}
