// One 8 x 8 product by MLX's own fragment code, whose struct BaseMMAFrag stands
// before this text. Row-major operands.
template <typename T>
[[kernel]] void mlx_matrix_product(
    const device T* a [[buffer(0)]],
    const device T* b [[buffer(1)]],
    device T* out [[buffer(2)]],
    uint lane [[thread_index_in_simdgroup]]) {
  using Fragment = BaseMMAFrag<T, 8, 8>;
  const short2 at = Fragment::get_coord(ushort(lane));
  const int offset = at.y * 8 + at.x;
  typename Fragment::frag_type fragment_a, fragment_b, product;
  typename Fragment::frag_type zero = typename Fragment::frag_type(T(0));
  Fragment::load(fragment_a, a + offset, 8, 1);
  Fragment::load(fragment_b, b + offset, 8, 1);
  Fragment::mma(product, fragment_a, fragment_b, zero);
  Fragment::store(product, out + offset, 8, 1);
}
