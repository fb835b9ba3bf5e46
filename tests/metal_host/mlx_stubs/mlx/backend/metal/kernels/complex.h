// Stands in for the header of the same name: the type is only named.
#pragma once

template <typename T>
struct complex_t {
  T real, imag;
  constexpr complex_t(T r = T(), T i = T()) : real(r), imag(i) {}
};
typedef complex_t<float> complex64_t;
