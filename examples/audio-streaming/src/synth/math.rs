//! Sine, exponential and pitch from additions, multiplications and divisions alone.
//!
//! IEEE 754 fixes the result of these operations to the last bit; it does not for the `sin` and
//! `exp` of a C library, and two machines must stream the same bytes.

/// 2π.
pub(super) const TAU: f32 = std::f32::consts::TAU;

/// sin(2π · `turns`).
pub(super) fn sine(turns: f32) -> f32 {
    let mut x = f64::from(turns);
    x -= (x + 0.5).floor();
    if x > 0.25 {
        x = 0.5 - x;
    } else if x < -0.25 {
        x = -0.5 - x;
    }
    let a = x * std::f64::consts::TAU;
    let s = a * a;
    let series = 1.0 - s / 6.0 * (1.0 - s / 20.0 * (1.0 - s / 42.0 * (1.0 - s / 72.0 * (1.0 - s / 110.0))));
    (a * series) as f32
}

/// cos(2π · `turns`).
pub(super) fn cosine(turns: f32) -> f32 {
    sine(turns + 0.25)
}

/// e to the power of `x`, for `x` between -80 and 20.
pub(super) fn exp(x: f32) -> f32 {
    let small = f64::from(x.clamp(-80.0, 20.0)) / 1024.0;
    let mut y = 1.0 + small * (1.0 + small / 2.0 * (1.0 + small / 3.0 * (1.0 + small / 4.0)));
    for _ in 0..10 {
        y *= y;
    }
    y as f32
}

/// Factor by which to multiply each sample so that a sound falls by 60 dB in `seconds`.
pub(super) fn decay(seconds: f32, rate: f32) -> f32 {
    exp(-6.9078 / (seconds * rate))
}

/// Frequency of a MIDI note (69 is a' with 440 Hz).
pub(super) fn note_hz(note: i32) -> f32 {
    const SEMITONES: [f32; 12] = [
        1.0,
        1.059_463_1,
        1.122_462,
        1.189_207_1,
        1.259_921,
        1.334_839_9,
        std::f32::consts::SQRT_2,
        1.498_307_1,
        1.587_401,
        1.681_792_8,
        1.781_797_4,
        1.887_748_6,
    ];
    let above = note - 69;
    let mut hz = 440.0 * SEMITONES[above.rem_euclid(12) as usize];
    for _ in 0..above.div_euclid(12).max(0) {
        hz *= 2.0;
    }
    for _ in above.div_euclid(12)..0 {
        hz /= 2.0;
    }
    hz
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_system_library() {
        for i in -400..400 {
            let x = i as f32 / 100.0;
            assert!((sine(x) - (f64::from(x) * std::f64::consts::TAU).sin() as f32).abs() < 2e-6, "sin {x}");
            assert!((cosine(x) - (f64::from(x) * std::f64::consts::TAU).cos() as f32).abs() < 2e-6, "cos {x}");
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-5, "exp {x}");
        }
    }

    #[test]
    fn notes_have_their_pitch() {
        assert!((note_hz(60) - 261.626).abs() < 0.01);
        assert!((note_hz(81) - 880.0).abs() < 0.01);
        assert!((note_hz(36) - 65.406).abs() < 0.01);
    }
}
