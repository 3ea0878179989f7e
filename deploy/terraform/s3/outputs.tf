locals {
  repository = "s3://${aws_s3_bucket.repository.bucket}${var.prefix == "" ? "" : "/${var.prefix}"}?region=${var.region}"
}

output "repository" {
  description = "What --repository takes."
  value       = local.repository
}

output "environment" {
  description = "What all commands find in their environment."
  value = {
    IMMICH_BACKUP_REPOSITORY    = local.repository
    IMMICH_BACKUP_STORAGE_CLASS = var.storage_class
    AWS_REGION                  = var.region
  }
}

output "roles" {
  description = "ARNs of the roles, by the name of the Kubernetes service account that acts as it; empty with identity = \"user\"."
  value       = { for name, role in aws_iam_role.pods : name => role.arn }
}

output "kubernetes" {
  description = "Kubernetes service accounts for an overlay; annotated with their role where that is how it is told (irsa)."
  value = join("---\n", [for name in keys(local.names) : yamlencode({
    apiVersion = "v1"
    kind       = "ServiceAccount"
    metadata = merge(
      { name = name, namespace = var.namespace, labels = { app = "immich-backup" } },
      var.identity == "irsa" ? { annotations = { "eks.amazonaws.com/role-arn" = aws_iam_role.pods[name].arn } } : {},
    )
  })])
}

output "secret" {
  description = "What the Kubernetes secret `backup-secrets` takes. With a role it needs no credentials; else put what the output `keys` prints beside it, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
  value = {
    S3_BUCKET = aws_s3_bucket.repository.bucket
    S3_PREFIX = var.prefix
  }
}

output "keys" {
  description = "Commands that make access keys of the users, for clusters elsewhere. Terraform makes none: its state would hold them."
  value       = { for name, user in aws_iam_user.keys : name => "aws iam create-access-key --user-name ${user.name}" }
}
