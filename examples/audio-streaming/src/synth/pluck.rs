//! A plucked string after Karplus and Strong, with the tuning filter of Jaffe and Smith.

use super::math::decay;
use super::noise::Noise;
use super::{Track, math};

/// One tone of the string.
pub(super) struct Pluck {
    pub(super) at: f32,
    pub(super) hz: f32,
    /// Seconds until the finger damps the string.
    pub(super) hold: f32,
    /// Seconds in which the string alone would fall by 60 dB.
    pub(super) ring: f32,
    pub(super) gain: f32,
    /// 0 (dull) to 1 (bright): how hard the pluck was.
    pub(super) bright: f32,
}

impl Pluck {
    pub(super) fn play(&self, track: &mut Track, noise: &mut Noise) {
        let rate = track.rate;
        let period = rate / self.hz;
        // Averaging two samples damps high tones too fast, so they are averaged less evenly.
        let older = (0.005 * rate / self.hz).clamp(0.06, 0.5);
        // As much of a sample is the delay of that; what remains of the period past whole samples
        // is the all-pass's.
        let whole = (period - older - 0.1).max(2.0) as usize;
        let fraction = (period - older - whole as f32).clamp(0.1, 1.1);
        let tuning = (1.0 - fraction) / (1.0 + fraction);
        let mut string = excitation(whole, self.bright, noise);
        let loss = math::exp(-6.9078 / (self.ring * self.hz));
        let hold = track.len_of(self.hold);
        let damp = decay(0.12, rate);
        let out = track.window(self.at, hold + (rate * 0.15) as usize);
        let (mut at, mut last, mut all_in, mut all_out, mut gain) = (0, 0.0, 0.0, 0.0, self.gain);
        for (i, sample) in out.iter_mut().enumerate() {
            let now = string[at];
            let averaged = loss * (now + older * (last - now));
            last = now;
            all_out = tuning * (averaged - all_out) + all_in;
            all_in = averaged;
            string[at] = all_out;
            at = (at + 1) % whole;
            if i > hold {
                gain *= damp;
            }
            *sample += gain * now;
        }
    }
}

/// A burst of noise one period long, without a mean, softer when less bright.
fn excitation(len: usize, bright: f32, noise: &mut Noise) -> Vec<f32> {
    let follow = 0.15 + 0.85 * bright.clamp(0.0, 1.0);
    let mut level = 0.0;
    let mut burst: Vec<f32> = (0..len)
        .map(|_| {
            level += follow * (noise.white() - level);
            level
        })
        .collect();
    let mean = burst.iter().sum::<f32>() / len as f32;
    let power = burst.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / len as f32;
    let gain = 0.5 / power.sqrt().max(1e-3);
    burst.iter_mut().for_each(|x| *x = (*x - mean) * gain);
    burst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_string_is_in_tune() {
        for hz in [110.0f32, 261.63, 440.0, 783.99] {
            let mut track = Track::new(16_000.0, 1.0);
            let tone = Pluck { at: 0.0, hz, hold: 1.0, ring: 4.0, gain: 1.0, bright: 0.5 };
            tone.play(&mut track, &mut Noise::new(5));
            // Strength of the pitch and of its neighbours a quarter tone away.
            let power = |hz: f32| {
                let part = &track.samples[2_000..14_000];
                let sum = part.iter().enumerate().fold((0.0, 0.0), |(s, c), (i, x)| {
                    let turns = (i as f32 * hz / 16_000.0).fract();
                    (s + x * math::sine(turns), c + x * math::cosine(turns))
                });
                sum.0 * sum.0 + sum.1 * sum.1
            };
            assert!(power(hz) > 10.0 * power(hz * 1.0293), "{hz} Hz is too high");
            assert!(power(hz) > 10.0 * power(hz / 1.0293), "{hz} Hz is too low");
        }
    }
}
