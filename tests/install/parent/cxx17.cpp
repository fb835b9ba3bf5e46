// The parent's own code keeps the parent's language standard.
static_assert(__cplusplus == 201703L);

int main() {}
