locals {
  repository = "s3://${aws_s3_bucket.repository.bucket}${var.prefix == "" ? "" : "/${var.prefix}"}?region=${var.region}"
}

output "repository" {
  description = "What --repository takes."
  value       = local.repository
}

output "environment" {
  description = "The same for programs that run elsewhere: what all commands find in their environment."
  value = {
    IMMICH_BACKUP_REPOSITORY    = local.repository
    IMMICH_BACKUP_STORAGE_CLASS = var.storage_class
  }
}

output "backup_config" {
  description = "For `backup-config.yaml` of an overlay (deploy/kubernetes/overlays/s3): a patch of the ConfigMap."
  value = yamlencode({
    apiVersion = "v1"
    kind       = "ConfigMap"
    metadata   = { name = "backup-config" }
    data       = { repository = local.repository, storage_class = var.storage_class, verify_sample = var.verify_sample }
  })
}

output "kubernetes" {
  description = "Patches for an overlay that tie the Kubernetes service accounts to their roles (irsa). EKS Pod Identity needs none, users have keys: empty."
  value = var.identity != "irsa" ? "" : join("---\n", [for name, role in aws_iam_role.pods : yamlencode({
    apiVersion = "v1"
    kind       = "ServiceAccount"
    metadata   = { name = name, annotations = { "eks.amazonaws.com/role-arn" = role.arn } }
  })])
}

output "secret" {
  description = "What the Kubernetes secrets `backup-secrets` and `prune-secrets` take where the repository does not stand in the ConfigMap; AWS_REGION then has to be said as well. With identity = \"user\" each takes its own key beside it, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
  value = {
    S3_BUCKET = aws_s3_bucket.repository.bucket
    S3_PREFIX = var.prefix
  }
}

output "keys" {
  description = "With identity = \"user\": commands that make access keys. Terraform makes none: its state would hold them."
  value       = { for name, user in aws_iam_user.keys : name => "aws iam create-access-key --user-name ${user.name}" }
}
