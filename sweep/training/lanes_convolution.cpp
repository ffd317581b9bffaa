// Convolutions of many models at once, through PyTorch's C interface: the operators of
// lanes_operators.py. Each computes on the calling thread.
//
// A position's outputs are a product of the filters with rows of the input, which are found by
// their places and never copied together (Dukhan (2019), "The Indirect Convolution Algorithm",
// arXiv 1907.02129). Rows of the batch come last in memory, so that a vector holds as many of them.

#include <algorithm>
#include <vector>

#include "lanes_native.h"

namespace {

constexpr int SIDES = 3;

// A convolution of `lanes` models: inputs x (C, sides, rows), filters w (K, C / groups, kernel),
// outputs d (K, lengths, rows).
struct Shape {
  int64_t lanes, rows, groups, in, out;  // in, out: channels of a group
  int64_t sides[SIDES], kernel[SIDES], lengths[SIDES], stride[SIDES], dilation[SIDES];
  int64_t taps, places, positions;  // of the kernel, of the input, of the output
};

// Which place of the input meets which tap of the kernel for an output, for each of `positions`
// or, the other way round, `places`.
struct Meeting {
  int64_t tap, other;
};
using Meetings = std::vector<std::vector<Meeting>>;

void meet(const Shape& s, Meetings* of_positions, Meetings* of_places) {
  if (of_positions) of_positions->resize(s.positions);
  if (of_places) of_places->resize(s.places);
  for (int64_t position = 0; position < s.positions; position++)
    for (int64_t tap = 0; tap < s.taps; tap++) {
      int64_t p = position, t = tap, place = 0, size = 1;
      for (int side = SIDES - 1; side >= 0; side--) {
        const int64_t at =
            p % s.lengths[side] * s.stride[side] + t % s.kernel[side] * s.dilation[side];
        place += at * size;
        size *= s.sides[side];
        p /= s.lengths[side];
        t /= s.kernel[side];
      }
      if (of_positions) (*of_positions)[position].push_back({tap, place});
      if (of_places) (*of_places)[place].push_back({tap, position});
    }
}

// Of sums over `outer` and the meetings: what each factor's numbers are apart.
struct Sum {
  int64_t outer, a_outer, a_row, b_outer, rows, c_row;
  const std::vector<Meeting>* met;
};

// c[r, j] = sum over o and meetings of a[r, o, tap] b[o, other, j], R rows and C vectors j.
template <class T, int R, int C>
inline __attribute__((always_inline)) void tile(const Sum& s, const T* a, const T* b, T* c) {
  using V = typename Vector<T>::type;
  constexpr int64_t L = LANES<T>;
  V sum[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int j = 0; j < C; j++) sum[r][j] = V{};
  for (int64_t o = 0; o < s.outer; o++)
    for (const Meeting& m : *s.met) {
      const T* x = a + o * s.a_outer + m.tap;
      const T* y = b + o * s.b_outer + m.other * s.rows;
      V v[C];
#pragma GCC unroll 2
      for (int j = 0; j < C; j++) v[j] = *(const V*)(y + j * L);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        V w = x[r * s.a_row] - V{};
#pragma GCC unroll 2
        for (int j = 0; j < C; j++) sum[r][j] += w * v[j];
      }
    }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int j = 0; j < C; j++) *(V*)(c + r * s.c_row + j * L) = sum[r][j];
}

template <class T, int C, int R = ROWS>
inline void tiles(int rows, const Sum& s, const T* a, const T* b, T* c) {
  if (rows == R)
    tile<T, R, C>(s, a, b, c);
  else if constexpr (R > 1)
    tiles<T, C, R - 1>(rows, s, a, b, c);
}

// All `height` rows of c and all its columns.
template <class T>
void sums(const Sum& s, int64_t height, const T* a, const T* b, T* c) {
  constexpr int64_t L = LANES<T>;
  if (s.rows < L) {
    for (int64_t r = 0; r < height; r++)
      for (int64_t j = 0; j < s.rows; j++) {
        T sum = 0;
        for (int64_t o = 0; o < s.outer; o++)
          for (const Meeting& m : *s.met)
            sum += a[r * s.a_row + o * s.a_outer + m.tap] * b[o * s.b_outer + m.other * s.rows + j];
        c[r * s.c_row + j] = sum;
      }
    return;
  }
  // Blocks of rows alike in height: a low one would not fill the processor's units.
  const int64_t blocks = (height + ROWS - 1) / ROWS;
  for (int64_t j = 0; j < s.rows;) {
    const bool wide = s.rows - j >= 2 * L;
    // The last columns are computed with some before them once more: same sums, no branches.
    if (s.rows - j < L) j = s.rows - L;
    for (int64_t i = 0; i < blocks; i++) {
      const int64_t top = height * i / blocks, end = height * (i + 1) / blocks;
      const T* x = a + top * s.a_row;
      T* to = c + top * s.c_row + j;
      if (wide)
        tiles<T, 2>(end - top, s, x, b + j, to);
      else
        tiles<T, 1>(end - top, s, x, b + j, to);
    }
    j += wide ? 2 * L : L;
  }
}

template <class T>
void convolve(const Shape& s, const T* x, int64_t x_lane, const T* w, int64_t w_lane, T* d) {
  Meetings met;
  meet(s, &met, nullptr);
  const int64_t filter = s.in * s.taps, image = s.places * s.rows, output = s.positions * s.rows;
  Sum sum{s.in, s.taps, filter, image, s.rows, output, nullptr};
  for (int64_t lane = 0; lane < s.lanes; lane++)
    for (int64_t group = 0; group < s.groups; group++) {
      const T* a = w + lane * w_lane + group * s.out * filter;
      const T* b = x + lane * x_lane + group * s.in * image;
      T* c = d + (lane * s.groups + group) * s.out * output;
      for (int64_t position = 0; position < s.positions; position++) {
        sum.met = &met[position];
        sums(sum, s.out, a, b, c + position * s.rows);
      }
    }
}

template <class T>
void input_gradient(const Shape& s, const T* d, int64_t d_lane, const T* w, int64_t w_lane, T* x) {
  Meetings met;
  meet(s, nullptr, &met);
  const int64_t filter = s.in * s.taps, image = s.places * s.rows, output = s.positions * s.rows;
  Sum sum{s.out, filter, s.taps, output, s.rows, image, nullptr};
  for (int64_t lane = 0; lane < s.lanes; lane++)
    for (int64_t group = 0; group < s.groups; group++) {
      const T* a = w + lane * w_lane + group * s.out * filter;
      const T* b = d + lane * d_lane + group * s.out * output;
      T* c = x + (lane * s.groups + group) * s.in * image;
      for (int64_t place = 0; place < s.places; place++) {
        sum.met = &met[place];
        sums(sum, s.in, a, b, c + place * s.rows);
      }
    }
}

// Rows of d and columns of x in a tile of the filters' gradient.
constexpr int FILTERS = 4, COLUMNS = 3;

// Sums over all positions and rows, side by side in a vector until the end.
template <class T>
inline __attribute__((always_inline)) void correlate(const Shape& s, const T* const d[FILTERS],
                                                     const T* const x[COLUMNS],
                                                     const int64_t* places,
                                                     T result[FILTERS][COLUMNS]) {
  using V = typename Vector<T>::type;
  constexpr int64_t L = LANES<T>;
  V sum[FILTERS][COLUMNS];
  T rest[FILTERS][COLUMNS] = {};
#pragma GCC unroll 4
  for (int r = 0; r < FILTERS; r++)
#pragma GCC unroll 4
    for (int k = 0; k < COLUMNS; k++) sum[r][k] = V{};
  for (int64_t position = 0; position < s.positions; position++) {
    const int64_t from = position * s.rows, to = places[position] * s.rows;
    int64_t j = 0;
    for (; j + L <= s.rows; j += L) {
      V v[COLUMNS];
#pragma GCC unroll 4
      for (int k = 0; k < COLUMNS; k++) v[k] = *(const V*)(x[k] + to + j);
#pragma GCC unroll 4
      for (int r = 0; r < FILTERS; r++) {
        V u = *(const V*)(d[r] + from + j);
#pragma GCC unroll 4
        for (int k = 0; k < COLUMNS; k++) sum[r][k] += u * v[k];
      }
    }
    for (; j < s.rows; j++)
      for (int r = 0; r < FILTERS; r++)
        for (int k = 0; k < COLUMNS; k++) rest[r][k] += d[r][from + j] * x[k][to + j];
  }
  for (int r = 0; r < FILTERS; r++)
    for (int k = 0; k < COLUMNS; k++) {
      T total = rest[r][k];
      for (int64_t i = 0; i < L; i++) total += sum[r][k][i];
      result[r][k] = total;
    }
}

template <class T>
void weight_gradient(const Shape& s, const T* d, int64_t d_lane, const T* x, int64_t x_lane, T* w) {
  Meetings met;
  meet(s, &met, nullptr);
  const int64_t filter = s.in * s.taps, image = s.places * s.rows, output = s.positions * s.rows;
  // A tap is as far from the first one at every position.
  std::vector<int64_t> places(s.positions), taps(s.taps);
  for (int64_t i = 0; i < s.positions; i++) places[i] = met[i][0].other;
  for (int64_t i = 0; i < s.taps && s.positions; i++) taps[i] = met[0][i].other - places[0];
  for (int64_t lane = 0; lane < s.lanes; lane++)
    for (int64_t group = 0; group < s.groups; group++) {
      const T* a = d + lane * d_lane + group * s.out * output;
      const T* b = x + lane * x_lane + group * s.in * image;
      T* c = w + (lane * s.groups + group) * s.out * filter;
      for (int64_t top = 0; top < s.out; top += FILTERS)
        for (int64_t left = 0; left < filter; left += COLUMNS) {
          const T *rows[FILTERS], *columns[COLUMNS];
          T result[FILTERS][COLUMNS];
          // Beyond the end is the last one once more.
          for (int64_t r = 0; r < FILTERS; r++) rows[r] = a + std::min(top + r, s.out - 1) * output;
          for (int64_t k = 0; k < COLUMNS; k++) {
            const int64_t column = std::min(left + k, filter - 1);
            columns[k] = b + column / s.taps * image + taps[column % s.taps] * s.rows;
          }
          correlate(s, rows, columns, places.data(), result);
          for (int64_t r = 0; r < std::min<int64_t>(FILTERS, s.out - top); r++)
            for (int64_t k = 0; k < std::min<int64_t>(COLUMNS, filter - left); k++)
              c[(top + r) * filter + left + k] = result[r][k];
        }
    }
}

// Whether a tensor can be read: of 6 axes, a lane's numbers side by side in their order.
template <class Holder>
bool read(AtenTensorHandle handle, Tensor* t) {
  if (!t->read<Holder>(handle) || t->dim != 6) return false;
  for (int64_t axis = 5, apart = 1; axis > 0; apart *= t->sizes[axis--])
    if (t->sizes[axis] != 1 && t->strides[axis] != apart) return false;
  return true;
}

// `channels`: of all groups together. `lengths` null: as many as there are.
Shape shape_of(int64_t lanes, int64_t rows, int64_t groups, int64_t in, int64_t channels,
               const int64_t* sides, const int64_t* kernel, const int64_t* lengths,
               const int64_t* stride, const int64_t* dilation) {
  Shape s{lanes, rows, groups, in, channels / groups, {}, {}, {}, {}, {}, 1, 1, 1};
  for (int i = 0; i < SIDES; i++) {
    s.sides[i] = sides[i], s.kernel[i] = kernel[i];
    s.stride[i] = stride[i], s.dilation[i] = dilation[i];
    s.lengths[i] =
        lengths ? lengths[i] : (sides[i] - dilation[i] * (kernel[i] - 1) - 1) / stride[i] + 1;
    s.taps *= kernel[i], s.places *= sides[i], s.positions *= s.lengths[i];
  }
  return s;
}

// Makes the result, and calls `work` with the lanes' tensors as float or as double.
template <class Holder, class Work>
AOTITorchError compute(const Tensor& a, const Tensor& b, const int64_t (&sizes)[6],
                       AtenTensorHandle* made, Work work) {
  void* to;
  if (a.dtype != b.dtype || !make<Holder>(6, sizes, a.dtype, made, &to)) return AOTI_TORCH_FAILURE;
  if (a.dtype == aoti_torch_dtype_float32())
    work((const float*)a.data, (const float*)b.data, (float*)to);
  else if (a.dtype == aoti_torch_dtype_float64())
    work((const double*)a.data, (const double*)b.data, (double*)to);
  else
    return AOTI_TORCH_FAILURE;
  return AOTI_TORCH_SUCCESS;
}

// The operators of lanes_operators.py. A list comes with its length, which is that of the sides.

template <class Holder>
AOTITorchError lanes_convolve(AtenTensorHandle input, AtenTensorHandle filters,
                              const int64_t* stride, const int64_t* dilation, int64_t groups,
                              AtenTensorHandle* made) {
  Tensor x, w;
  if (!read<Holder>(input, &x) || !read<Holder>(filters, &w)) return AOTI_TORCH_FAILURE;
  const Shape s = shape_of(x.sizes[0], x.sizes[5], groups, w.sizes[2], w.sizes[1], x.sizes + 2,
                           w.sizes + 3, nullptr, stride, dilation);
  return compute<Holder>(x, w,
                         {s.lanes, w.sizes[1], s.lengths[0], s.lengths[1], s.lengths[2], s.rows},
                         made, [&](const auto* from, const auto* by, auto* to) {
                           convolve(s, from, x.strides[0], by, w.strides[0], to);
                         });
}

template <class Holder>
AOTITorchError lanes_input_gradient(AtenTensorHandle output, AtenTensorHandle filters,
                                    const int64_t* sides, const int64_t* stride,
                                    const int64_t* dilation, int64_t groups,
                                    AtenTensorHandle* made) {
  Tensor d, w;
  if (!read<Holder>(output, &d) || !read<Holder>(filters, &w)) return AOTI_TORCH_FAILURE;
  const Shape s = shape_of(d.sizes[0], d.sizes[5], groups, w.sizes[2], w.sizes[1], sides,
                           w.sizes + 3, d.sizes + 2, stride, dilation);
  return compute<Holder>(d, w, {s.lanes, groups * s.in, sides[0], sides[1], sides[2], s.rows}, made,
                         [&](const auto* from, const auto* by, auto* to) {
                           input_gradient(s, from, d.strides[0], by, w.strides[0], to);
                         });
}

template <class Holder>
AOTITorchError lanes_weight_gradient(AtenTensorHandle output, AtenTensorHandle input,
                                     const int64_t* kernel, const int64_t* stride,
                                     const int64_t* dilation, int64_t groups,
                                     AtenTensorHandle* made) {
  Tensor d, x;
  if (!read<Holder>(output, &d) || !read<Holder>(input, &x)) return AOTI_TORCH_FAILURE;
  const Shape s = shape_of(d.sizes[0], d.sizes[5], groups, x.sizes[1] / groups, d.sizes[1],
                           x.sizes + 2, kernel, d.sizes + 2, stride, dilation);
  return compute<Holder>(d, x, {s.lanes, d.sizes[1], s.in, kernel[0], kernel[1], kernel[2]}, made,
                         [&](const auto* from, const auto* with, auto* to) {
                           weight_gradient(s, from, d.strides[0], with, x.strides[0], to);
                         });
}

}  // namespace

OPERATOR(lanes_convolve,
         (AtenTensorHandle x, AtenTensorHandle w, const int64_t* stride, int64_t,
          const int64_t* dilation, int64_t, int64_t groups, AtenTensorHandle* made),
         x, w, stride, dilation, groups, made)
OPERATOR(lanes_input_gradient,
         (AtenTensorHandle d, AtenTensorHandle w, const int64_t* sides, int64_t,
          const int64_t* stride, int64_t, const int64_t* dilation, int64_t, int64_t groups,
          AtenTensorHandle* made),
         d, w, sides, stride, dilation, groups, made)
OPERATOR(lanes_weight_gradient,
         (AtenTensorHandle d, AtenTensorHandle x, const int64_t* kernel, int64_t,
          const int64_t* stride, int64_t, const int64_t* dilation, int64_t, int64_t groups,
          AtenTensorHandle* made),
         d, x, kernel, stride, dilation, groups, made)
