//! Speech-like sound by formants: nonsense words with the rhythm and the melody of speaking.
//!
//! A buzz from the vocal folds goes through four resonators (the formants, which glide from sound
//! to sound), and noise of its own band is added for consonants: a much reduced Klatt synthesizer.

use super::Track;
use super::math::{TAU, cosine, exp, sine};
use super::noise::Noise;

/// One sound: where the formants go, and how much voice and noise there is.
#[derive(Clone, Copy)]
struct Sound {
    formants: [f32; 3],
    voice: f32,
    hiss: f32,
    /// Centre and width of the noise in Hz.
    band: (f32, f32),
    seconds: f32,
}

const fn vowel(f1: f32, f2: f32, f3: f32) -> Sound {
    Sound { formants: [f1, f2, f3], voice: 1.0, hiss: 0.0, band: (1500.0, 1500.0), seconds: 0.13 }
}

const fn voiced(f1: f32, f2: f32, f3: f32, voice: f32, seconds: f32) -> Sound {
    Sound { formants: [f1, f2, f3], voice, hiss: 0.0, band: (1500.0, 1500.0), seconds }
}

const fn hissed(f2: f32, hiss: f32, band: (f32, f32), seconds: f32) -> Sound {
    Sound { formants: [350.0, f2, 2600.0], voice: 0.0, hiss, band, seconds }
}

/// Peterson and Barney's means for men, rounded: a, e, i, o, u, and a neutral one.
const VOWELS: [Sound; 6] = [
    vowel(730.0, 1090.0, 2440.0),
    vowel(530.0, 1840.0, 2480.0),
    vowel(290.0, 2250.0, 2950.0),
    vowel(570.0, 840.0, 2410.0),
    vowel(320.0, 900.0, 2240.0),
    vowel(500.0, 1450.0, 2450.0),
];

/// Beginnings of syllables; a stop is a silence and then a burst.
const ONSETS: [&[Sound]; 10] = [
    &[hissed(1700.0, 0.22, (5200.0, 1400.0), 0.09)],
    &[hissed(1800.0, 0.22, (3000.0, 900.0), 0.09)],
    &[hissed(1100.0, 0.07, (2500.0, 4000.0), 0.07)],
    &[hissed(1700.0, 0.0, (4000.0, 1500.0), 0.05), hissed(1700.0, 0.3, (3800.0, 1500.0), 0.018)],
    &[hissed(1900.0, 0.0, (1900.0, 700.0), 0.05), hissed(1900.0, 0.3, (1900.0, 700.0), 0.025)],
    &[hissed(900.0, 0.0, (900.0, 600.0), 0.05), hissed(900.0, 0.25, (900.0, 700.0), 0.012)],
    &[voiced(260.0, 1050.0, 2200.0, 0.4, 0.065)],
    &[voiced(260.0, 1500.0, 2500.0, 0.4, 0.06)],
    &[voiced(360.0, 1250.0, 2700.0, 0.55, 0.055)],
    &[voiced(300.0, 700.0, 2200.0, 0.5, 0.06)],
];

const PAUSE: Sound = hissed(1500.0, 0.0, (1500.0, 1500.0), 0.1);

/// Says something from `from` to `to` seconds.
pub(super) fn speak(track: &mut Track, from: f32, to: f32, noise: &mut Noise) {
    let rate = track.rate;
    let score = compose(to - from, noise);
    let total: f32 = score.iter().map(|(sound, _)| sound.seconds).sum();
    let len = track.len_of(total.min(to - from));
    let out = track.window(from, len);
    let mut voice = Voice::new(rate);
    let (mut index, mut ends) = (0, score.first().map_or(0.0, |(sound, _)| sound.seconds));
    for (i, sample) in out.iter_mut().enumerate() {
        let t = i as f32 / rate;
        while t >= ends && index + 1 < score.len() {
            index += 1;
            ends += score[index].0.seconds;
        }
        let (sound, hz) = &score[index];
        let fade = ((len - i) as f32 / (0.03 * rate)).min(1.0);
        *sample += fade * voice.next(sound, *hz, noise);
    }
}

/// Words of one to three syllables, with the pitch of each sound, until `seconds` are filled.
fn compose(seconds: f32, noise: &mut Noise) -> Vec<(Sound, f32)> {
    let mut score = Vec::new();
    let mut filled = 0.0;
    let mut words_to_pause = 3;
    while filled < seconds {
        let syllables = *noise.pick(&[1, 2, 2, 3]);
        let stressed = *noise.pick(&[0, 0, 1]) % syllables;
        for syllable in 0..syllables {
            // The voice falls over a sentence and rises on what is stressed.
            let base = 128.0 - 26.0 * (filled / seconds);
            let hz = if syllable == stressed { base * 1.14 } else { base } * noise.between(0.97, 1.03);
            let stretch = if syllable == stressed { 1.25 } else { 0.85 } * noise.between(0.9, 1.15);
            let mut nucleus = *noise.pick(&VOWELS);
            nucleus.seconds *= stretch;
            nucleus.voice *= if syllable == stressed { 1.0 } else { 0.75 };
            for sound in noise.pick(&ONSETS).iter().chain([&nucleus]) {
                filled += sound.seconds;
                score.push((*sound, hz));
            }
            if noise.happens(0.2) {
                let coda = ONSETS[7][0];
                filled += coda.seconds;
                score.push((coda, hz * 0.97));
            }
        }
        words_to_pause -= 1;
        if words_to_pause == 0 {
            words_to_pause = *noise.pick(&[3, 4, 5]);
            score.push((Sound { seconds: noise.between(0.12, 0.24), ..PAUSE }, 100.0));
            filled += 0.18;
        }
    }
    score
}

/// The state of the mouth: everything glides towards the sound that is to be made.
struct Voice {
    rate: f32,
    phase: f32,
    hz: f32,
    formants: [f32; 3],
    voice: f32,
    hiss: f32,
    resonators: [Resonator; 4],
    hiss_band: Resonator,
    last: f32,
    age: u32,
}

impl Voice {
    fn new(rate: f32) -> Self {
        let mut voice = Self {
            rate,
            phase: 0.0,
            hz: 120.0,
            formants: [500.0, 1500.0, 2500.0],
            voice: 0.0,
            hiss: 0.0,
            resonators: [Resonator::default(); 4],
            hiss_band: Resonator::default(),
            last: 0.0,
            age: 0,
        };
        voice.resonators[3].tune(3400.0, 250.0, rate);
        voice
    }

    fn next(&mut self, sound: &Sound, hz: f32, noise: &mut Noise) -> f32 {
        let glide = |seconds: f32| 1.0 - exp(-32.0 / (seconds * self.rate));
        if self.age.is_multiple_of(32) {
            let (slow, fast) = (glide(0.03), glide(0.008));
            for (now, target) in self.formants.iter_mut().zip(sound.formants) {
                *now += slow * (target - *now);
            }
            self.hz += slow * (hz - self.hz);
            self.voice += glide_of(sound.voice, self.voice, slow, fast) * (sound.voice - self.voice);
            self.hiss += fast * (sound.hiss - self.hiss);
            for (resonator, (hz, width)) in self.resonators.iter_mut().zip(self.formants.into_iter().zip([70.0, 100.0, 140.0])) {
                resonator.tune(hz, width, self.rate);
            }
            self.hiss_band.tune(sound.band.0, sound.band.1, self.rate);
        }
        self.age = self.age.wrapping_add(1);
        self.phase += self.hz * (1.0 + 0.01 * noise.white()) / self.rate;
        self.phase -= self.phase.floor();
        let mut buzz = self.voice * (folds(self.phase) - 0.3 + 0.03 * noise.white());
        for resonator in &mut self.resonators {
            buzz = resonator.next(buzz);
        }
        // The lips radiate the change of pressure.
        let radiated = buzz - 0.97 * self.last;
        self.last = buzz;
        let white = noise.white();
        radiated + self.hiss * self.hiss_band.next_peak(white)
    }
}

/// A voice stops faster than it begins.
fn glide_of(target: f32, now: f32, slow: f32, fast: f32) -> f32 {
    if target < now { fast } else { slow }
}

/// Air through the vocal folds over one period: opening, closing faster, closed (Rosenberg).
fn folds(phase: f32) -> f32 {
    if phase < 0.4 {
        0.5 * (1.0 - cosine(phase / 0.8))
    } else if phase < 0.52 {
        sine(0.25 + (phase - 0.4) / 0.48)
    } else {
        0.0
    }
}

/// A two-pole resonance.
#[derive(Clone, Copy, Default)]
struct Resonator {
    a: f32,
    b: f32,
    c: f32,
    peak: f32,
    last: f32,
    earlier: f32,
    tuned: (f32, f32),
}

impl Resonator {
    /// Sets centre and width in Hz; past what the sample rate can carry it lets all through.
    fn tune(&mut self, hz: f32, width: f32, rate: f32) {
        if self.tuned == (hz, width) {
            return;
        }
        self.tuned = (hz, width);
        if hz > 0.46 * rate {
            (self.a, self.b, self.c, self.peak) = (1.0, 0.0, 0.0, 0.3);
            return;
        }
        let radius = exp(-TAU / 2.0 * width / rate);
        self.c = -radius * radius;
        self.b = 2.0 * radius * cosine(hz / rate);
        self.a = 1.0 - self.b - self.c;
        self.peak = (1.0 - radius) * 2.0;
    }

    /// With gain 1 at 0 Hz, for formants in a row.
    fn next(&mut self, input: f32) -> f32 {
        self.step(self.a * input)
    }

    /// With gain of about 1 at the centre, for bands of noise.
    fn next_peak(&mut self, input: f32) -> f32 {
        self.step(self.peak * input)
    }

    fn step(&mut self, driven: f32) -> f32 {
        let now = driven + self.b * self.last + self.c * self.earlier;
        self.earlier = self.last;
        self.last = now;
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speech_fills_its_place_and_nothing_else() {
        let mut track = Track::new(16_000.0, 4.0);
        speak(&mut track, 1.0, 3.0, &mut Noise::new(2));
        let power = |from: usize, to: usize| track.samples[from..to].iter().map(|x| x * x).sum::<f32>();
        assert_eq!(power(0, 16_000), 0.0);
        assert_eq!(power(48_000, 64_000), 0.0);
        assert!(power(16_000, 48_000) > 1.0);
        assert!(track.samples.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn a_vowel_has_its_formants() {
        let (mut voice, mut noise) = (Voice::new(16_000.0), Noise::new(1));
        let samples: Vec<f32> = (0..16_000).map(|_| voice.next(&VOWELS[2], 100.0, &mut noise)).collect();
        let power = |hz: f32| (-6..=6).map(|d| band(&samples[4_000..], hz + 20.0 * d as f32)).sum::<f32>();
        // The i has a low first and a high second formant and a valley between.
        assert!(power(290.0) > 5.0 * power(1200.0));
        assert!(power(2250.0) > 5.0 * power(1200.0));
    }

    fn band(samples: &[f32], hz: f32) -> f32 {
        let (s, c) = samples.iter().enumerate().fold((0.0, 0.0), |(s, c), (i, x)| {
            let turns = (i as f32 * hz / 16_000.0).fract();
            (s + x * sine(turns), c + x * cosine(turns))
        });
        s * s + c * c
    }
}
