//! A small drum set, played softly: bass drum, snare with brushes, closed hi-hat.

use super::Track;
use super::math::{decay, exp, sine};
use super::noise::Noise;

/// A sine that falls from 130 to 48 Hz.
pub(super) fn bass_drum(track: &mut Track, at: f32, gain: f32) {
    let rate = track.rate;
    let len = track.len_of(0.35);
    let (fade, fall) = (decay(0.4, rate), exp(-1.0 / (0.03 * rate)));
    let (mut phase, mut level, mut sweep) = (0.0f32, gain, 82.0);
    for sample in track.window(at, len) {
        *sample += level * sine(phase);
        phase = (phase + (48.0 + sweep) / rate).fract();
        sweep *= fall;
        level *= fade;
    }
}

/// A short tone and a longer rustle.
pub(super) fn snare(track: &mut Track, at: f32, gain: f32, noise: &mut Noise) {
    let rate = track.rate;
    let len = track.len_of(0.22);
    let (tone_fade, rustle_fade) = (decay(0.12, rate), decay(0.25, rate));
    let (mut tone, mut rustle, mut phase, mut last) = (gain * 0.6, gain * 0.5, 0.0f32, 0.0);
    for sample in track.window(at, len) {
        let white = noise.white();
        *sample += tone * sine(phase) + rustle * 0.6 * (white - 0.6 * last);
        last = white;
        phase = (phase + 185.0 / rate).fract();
        tone *= tone_fade;
        rustle *= rustle_fade;
    }
}

/// Noise without its low part, for a moment.
pub(super) fn hi_hat(track: &mut Track, at: f32, gain: f32, noise: &mut Noise) {
    let rate = track.rate;
    let len = track.len_of(0.06);
    let fade = decay(0.07, rate);
    let (mut level, mut last, mut earlier) = (gain, 0.0, 0.0);
    for sample in track.window(at, len) {
        let white = noise.white();
        *sample += level * 0.5 * (white - 1.6 * last + 0.7 * earlier);
        earlier = last;
        last = white;
        level *= fade;
    }
}
