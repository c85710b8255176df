package toolbox

import (
	"context"

	"github.com/penstock-gateway/penstock/tools/lambda"
)

// Lambda installs awslambdaric, AWS's runtime interface client for Python, and
// what it needs, from wheels whose hashes are pinned in
// tools/lambda/requirements.txt. It returns the directory to put on PYTHONPATH.
func Lambda(ctx context.Context, o Options) (string, error) {
	return o.wheels(ctx, "lambda", "awslambdaric", "Lambda", lambda.Requirements)
}
