// Products of many small matrices, for compiled programs of lanes; on the calling thread.
//
// A product of small matrices is over before a general library has looked at it: here a matrix is
// taken in tiles of as many rows and columns as the processor's registers hold (Goto and van de
// Geijn (2008), doi:10.1145/1356052.1356053), whatever its strides.

#include "lanes_native.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

// Of a matrix so many columns (A) and rows (A, C) are taken at once: what is packed stays in cache.
constexpr int64_t DEPTH = 256, HEIGHT = 240;
// What lies within so many bytes is in cache as it is, and is not packed: of B all is read for each
// tile, of A a part.
constexpr int64_t NEAR = 32 << 10, NEAR_ROWS = 128 << 10;

template <class T>
constexpr int64_t WIDTH = 2 * LANES<T>;

template <class T, int first, int... i>
inline __attribute__((always_inline)) typename Vector<T>::type interleave(
    typename Vector<T>::type a, typename Vector<T>::type b, std::integer_sequence<int, i...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (first + i / 2 + (i % 2) * LANES<T>)...);
#else
  using Places = typename Vector<std::conditional_t<sizeof(T) == 4, int32_t, int64_t> >::type;
  return __builtin_shuffle(a, b, Places{(first + i / 2 + (i % 2) * LANES<T>)...});
#endif
}

// The first `count` numbers of a vector.
template <class T>
inline __attribute__((always_inline)) void store_some(typename Vector<T>::type v, int64_t count,
                                                      T* to) {
#if defined(__AVX512F__)
  const unsigned some = (1u << count) - 1;
  if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(to, some, (__m512)v);
  else
    _mm512_mask_storeu_pd(to, some, (__m512d)v);
#else
  std::memcpy(to, &v, count * sizeof(T));
#endif
}

template <class T>
inline __attribute__((always_inline)) typename Vector<T>::type load_some(const T* from,
                                                                         int64_t count) {
  using V = typename Vector<T>::type;
#if defined(__AVX512F__)
  const unsigned some = (1u << count) - 1;
  if constexpr (sizeof(T) == 4)
    return (V)_mm512_maskz_loadu_ps(some, from);
  else
    return (V)_mm512_maskz_loadu_pd(some, from);
#else
  T some[LANES<T>] = {};
  std::memcpy(some, from, count * sizeof(T));
  return *(V*)some;
#endif
}

// What becomes of a product as it is stored: as it is; RELU: a row is added to each of its rows,
// and what is negative then is zero; GATE: it is zero where another matrix is not positive. NaN is
// neither.
enum Kind { PLAIN, RELU, GATE };

template <class T>
struct Ending {
  using V = typename Vector<T>::type;
  Kind kind;
  const T* other;  // for the first number that is stored
  int64_t row;     // between its rows

  Ending at(int64_t top, int64_t left) const {
    return {kind, other + top * row + left, row};
  }

  inline __attribute__((always_inline)) V ended(V v, V o) const {
    v = kind == RELU ? v + o : v;
    const V sign = kind == RELU ? v : o;
    return sign <= V{} ? V{} : v;
  }
};

// A tile of C: R rows of A times a panel of B, whose rows are `next` apart; `add`: on top of what
// is there.
template <class T, int R, int C, bool packed>
inline __attribute__((always_inline)) void tile(const T* a, int64_t row, int64_t column,
                                                const T* panel, int64_t next, int64_t depth, T* c,
                                                int64_t stride, int64_t width, bool add,
                                                Ending<T> end) {
  using V = typename Vector<T>::type;
  constexpr int64_t L = LANES<T>;
  V sum[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int j = 0; j < C; j++) sum[r][j] = V{};
  if (packed) next = WIDTH<T>;  // The compiler makes use of knowing it.
  for (int64_t k = 0; k < depth; k++) {
    V b[C];
#pragma GCC unroll 2
    for (int j = 0; j < C; j++) b[j] = *(const V*)(panel + k * next + j * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      V x = a[r * row + k * column] - V{};
#pragma GCC unroll 2
      for (int j = 0; j < C; j++) sum[r][j] += x * b[j];
    }
  }
  if (width == C * L) {
    if (add)
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int j = 0; j < C; j++) sum[r][j] += *(V*)(c + r * stride + j * L);
    if (end.kind != PLAIN)
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int j = 0; j < C; j++)
          sum[r][j] = end.ended(sum[r][j], *(const V*)(end.other + r * end.row + j * L));
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int j = 0; j < C; j++) *(V*)(c + r * stride + j * L) = sum[r][j];
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int j = 0; j < C; j++) {
        T* to = c + r * stride + j * L;
        const int64_t some = std::min(L, width - j * L);
        V v = sum[r][j];
        if (add) v += load_some<T>(to, some);
        if (end.kind != PLAIN)
          v = end.ended(v, load_some<T>(end.other + r * end.row + j * L, some));
        store_some<T>(v, some, to);
      }
  }
}

template <class T, int C, bool packed, int R = ROWS>
inline void tiles(int rows, const T* a, int64_t row, int64_t column, const T* panel, int64_t next,
                  int64_t depth, T* c, int64_t stride, int64_t width, bool add, Ending<T> end) {
  if (rows == R)
    tile<T, R, C, packed>(a, row, column, panel, next, depth, c, stride, width, add, end);
  else if constexpr (R > 1)
    tiles<T, C, packed, R - 1>(rows, a, row, column, panel, next, depth, c, stride, width, add,
                               end);
}

// A square block of as many rows as a vector has numbers, turned round: interleaving the upper half
// with the lower one as often as that number halves does that. Rows from `count` on are zeros.
template <class T>
inline __attribute__((always_inline)) void turn(const T* from, int64_t row, int64_t count, T* to,
                                                int64_t stride) {
  using V = typename Vector<T>::type;
  constexpr int L = LANES<T>;
  V v[L], w[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; i++) v[i] = i < count ? *(const V*)(from + i * row) : V{};
#pragma GCC unroll 4
  for (int step = 1; step < L; step *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < L / 2; i++) {
      w[2 * i] = interleave<T, 0>(v[i], v[i + L / 2], std::make_integer_sequence<int, L>{});
      w[2 * i + 1] = interleave<T, L / 2>(v[i], v[i + L / 2], std::make_integer_sequence<int, L>{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) v[i] = w[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; i++) *(V*)(to + i * stride) = v[i];
}

// Columns of B side by side, as many as a whole number of vectors has. Of those beyond the width
// nobody looks at what comes of them.
template <class T>
void pack_panel(const T* b, int64_t row, int64_t column, int64_t depth, int64_t width, T* panel) {
  constexpr int64_t W = WIDTH<T>, L = LANES<T>;
  int64_t k = 0;
  if (column == 1) {
    // A whole panel's width, as long as what lies beyond is the row below.
    if (row + width >= W)
      for (; k + (width < W) < depth; k++) std::memcpy(panel + k * W, b + k * row, W * sizeof(T));
  } else if (row == 1 && depth >= L) {
    // The last of the blocks lies on the one before where they do not fill the depth.
    for (; k < depth; k += L) {
      const int64_t top = std::min(k, depth - L);
      for (int64_t j = 0; j < width; j += L)
        turn<T>(b + top + j * column, column, width - j, panel + top * W + j, W);
    }
  }
  for (; k < depth; k++) {
    for (int64_t j = 0; j < width; j++) panel[k * W + j] = b[k * row + j * column];
    for (int64_t j = width; j % L; j++) panel[k * W + j] = 0;
  }
}

// Rows of A in blocks of ROWS, a block's numbers of a column side by side.
template <class T>
void pack_rows(const T* a, int64_t row, int64_t column, int64_t depth, int64_t count, T* rows) {
  if (row == 1 && count == ROWS) {
    for (int64_t k = 0; k < depth; k++)
      std::memcpy(rows + k * ROWS, a + k * column, ROWS * sizeof(T));
    return;
  }
  for (int64_t k = 0; k < depth; k++)
    for (int64_t r = 0; r < count; r++) rows[k * ROWS + r] = a[r * row + k * column];
}

template <class T>
void block(const T* a, int64_t row, int64_t column, const T* b, int64_t b_row, int64_t b_column,
           T* c, int64_t m, int64_t n, int64_t depth, T* panel, T* rows, bool add, Ending<T> end) {
  constexpr int64_t W = WIDTH<T>, L = LANES<T>;
  const bool is_near = row == 1 && depth * column * (int64_t)sizeof(T) <= NEAR_ROWS;
  const bool gather = column != 1 && !is_near;
  if (gather)
    for (int64_t top = 0; top < m; top += ROWS)
      pack_rows(a + top * row, row, column, depth, std::min<int64_t>(ROWS, m - top),
                rows + top * depth);
  for (int64_t left = 0; left < n; left += W) {
    const int64_t width = std::min(W, n - left);
    const T* y = b + left * b_column;
    const bool pack = b_column != 1 || width % L || depth * b_row * (int64_t)sizeof(T) > NEAR;
    if (pack) {
      pack_panel(y, b_row, b_column, depth, width, panel);
      y = panel;
    }
    for (int64_t top = 0; top < m; top += ROWS) {
      const int count = std::min<int64_t>(ROWS, m - top);
      const T* x = gather ? rows + top * depth : a + top * row;
      const int64_t x_row = gather ? 1 : row, x_column = gather ? ROWS : column;
      T* to = c + top * n + left;
      const Ending<T> here = end.at(top, left);
      if (pack && width > L)
        tiles<T, 2, true>(count, x, x_row, x_column, y, W, depth, to, n, width, add, here);
      else if (pack)
        tiles<T, 1, true>(count, x, x_row, x_column, y, W, depth, to, n, width, add, here);
      else if (width > L)
        tiles<T, 2, false>(count, x, x_row, x_column, y, b_row, depth, to, n, width, add, here);
      else
        tiles<T, 1, false>(count, x, x_row, x_column, y, b_row, depth, to, n, width, add, here);
    }
  }
}

template <class T>
void multiply(const T* a, const int64_t* as, const T* b, const int64_t* bs, T* c, int64_t m,
              int64_t n, int64_t k, T* panel, T* rows, Ending<T> end) {
  for (int64_t top = 0; top < m; top += HEIGHT) {
    const int64_t height = std::min(HEIGHT, m - top);
    const T* x = a + top * as[1];
    T* to = c + top * n;
    for (int64_t from = 0; from == 0 || from < k; from += DEPTH) {
      const int64_t depth = std::min(DEPTH, k - from);
      const Ending<T> here = from + depth < k ? Ending<T>{} : end.at(top, 0);
      block(x + from * as[2], as[1], as[2], b + from * bs[1], bs[1], bs[2], to, height, n, depth,
            panel, rows, from > 0, here);
    }
  }
}

template <class T>
void multiply_all(const Tensor& a, const Tensor& b, const Tensor* other, Kind kind, void* data) {
  alignas(64) thread_local static T own_panel[DEPTH * WIDTH<T>];
  alignas(64) thread_local static T own_rows[DEPTH * HEIGHT];
  T* volatile found[] = {own_panel, own_rows};  // Else they are looked up again and again.
  T *panel = found[0], *rows = found[1], *c = (T*)data;
  const int64_t *as = a.strides, *bs = b.strides, m = a.sizes[1], n = b.sizes[2];
  const bool is_row = kind == RELU;
  const int64_t next = is_row ? 0 : other ? other->strides[1] : 0;
  // Numbers of the other one that do not lie side by side are looked at afterwards.
  const int64_t apart = other ? other->strides[is_row ? 1 : 2] : 1;
  for (int64_t lane = 0; lane < a.sizes[0]; lane++, c += m * n) {
    const T* more = other ? (const T*)other->data + lane * other->strides[0] : nullptr;
    const Ending<T> end = apart == 1 ? Ending<T>{kind, more, next} : Ending<T>{};
    multiply((const T*)a.data + lane * as[0], as, (const T*)b.data + lane * bs[0], bs, c, m, n,
             a.sizes[2], panel, rows, end);
    for (int64_t at = 0; apart != 1 && at < m * n; at++) {
      const T number = more[at / n * next + at % n * apart];
      if (is_row)
        c[at] = c[at] + number < 0 ? 0 : c[at] + number;
      else if (number <= 0)
        c[at] = 0;
    }
  }
}

template <class Holder>
AOTITorchError multiply(AtenTensorHandle left, AtenTensorHandle right, AtenTensorHandle more,
                        Kind kind, AtenTensorHandle* product) {
  Tensor a, b, other;
  void* data;
  if (!a.read<Holder>(left) || !b.read<Holder>(right)) return AOTI_TORCH_FAILURE;
  if (more && !other.read<Holder>(more)) return AOTI_TORCH_FAILURE;
  const int64_t sizes[] = {a.sizes[0], a.sizes[1], b.sizes[2]};
  if (!make<Holder>(3, sizes, a.dtype, product, &data)) return AOTI_TORCH_FAILURE;
  const Tensor* known = more ? &other : nullptr;
  if (a.dtype == aoti_torch_dtype_float32())
    multiply_all<float>(a, b, known, kind, data);
  else if (a.dtype == aoti_torch_dtype_float64())
    multiply_all<double>(a, b, known, kind, data);
  else if (std::is_same_v<Holder, Torch> && !more)
    return aoti_torch_cpu_bmm_out(*product, left, right);
  else
    return AOTI_TORCH_FAILURE;
  return AOTI_TORCH_SUCCESS;
}

// The operator sweep::lanes_matmul.
template <class Holder>
AOTITorchError lanes_matmul(AtenTensorHandle left, AtenTensorHandle right,
                            AtenTensorHandle* product) {
  return multiply<Holder>(left, right, nullptr, PLAIN, product);
}

// The operator sweep::lanes_matmul_relu; `row` is (lanes, n).
template <class Holder>
AOTITorchError lanes_matmul_relu(AtenTensorHandle left, AtenTensorHandle right,
                                 AtenTensorHandle row, AtenTensorHandle* product) {
  return multiply<Holder>(left, right, row, RELU, product);
}

// The operator sweep::lanes_matmul_gated; `gate` is (lanes, m, n).
template <class Holder>
AOTITorchError lanes_matmul_gated(AtenTensorHandle left, AtenTensorHandle right,
                                  AtenTensorHandle gate, AtenTensorHandle* product) {
  return multiply<Holder>(left, right, gate, GATE, product);
}

// The operator sweep::lanes_kept, of one number a lane; a fifth of what PyTorch's own copy takes.
template <class Holder>
AOTITorchError lanes_kept(AtenTensorHandle numbers, AtenTensorHandle* kept) {
  Tensor a;
  void* data;
  if (!a.read<Holder>(numbers) || !make<Holder>(a.dim, a.sizes, a.dtype, kept, &data))
    return AOTI_TORCH_FAILURE;
  const size_t each = aoti_torch_dtype_element_size(a.dtype);
  for (int64_t lane = 0; lane < a.sizes[0]; lane++)
    std::memcpy((char*)data + lane * each, (char*)a.data + lane * a.strides[0] * each, each);
  return AOTI_TORCH_SUCCESS;
}

}  // namespace

OPERATOR(lanes_matmul, (AtenTensorHandle left, AtenTensorHandle right, AtenTensorHandle* product),
         left, right, product)
OPERATOR(lanes_matmul_relu,
         (AtenTensorHandle left, AtenTensorHandle right, AtenTensorHandle row,
          AtenTensorHandle* product),
         left, right, row, product)
OPERATOR(lanes_matmul_gated,
         (AtenTensorHandle left, AtenTensorHandle right, AtenTensorHandle gate,
          AtenTensorHandle* product),
         left, right, gate, product)
OPERATOR(lanes_kept, (AtenTensorHandle numbers, AtenTensorHandle* kept), numbers, kept)
